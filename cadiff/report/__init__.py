"""One self-contained HTML page that tells what was trained, how well it decodes, and what it came from."""

from cadiff.report.content import DataSource, Pictures, ReportContent, RunRecord, collect_run
from cadiff.report.page import report_runs, write_report

__all__ = ["DataSource", "Pictures", "ReportContent", "RunRecord", "collect_run", "report_runs", "write_report"]
