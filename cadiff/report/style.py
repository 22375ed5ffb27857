"""The page's style sheet and its one small script; both travel inside the page."""

STYLE = """
:root{color-scheme:light dark;--paper:#fcfbf8;--card:#fff;--ink:#1c2226;--muted:#566068;--line:#dedad1;--shade:#efece4;
--c0:#1f5f8b;--c1:#a4531a;--c2:#6b6f75;--c3:#4c7332;--c4:#7b4a91;--c5:#8a6a00;--good:#2f6b3c;--warn:#8c4a10}
@media (prefers-color-scheme:dark){:root{--paper:#15181b;--card:#1c2024;--ink:#e6e4df;--muted:#a3abb1;--line:#343a40;
--shade:#272c31;--c0:#7fb4dc;--c1:#e0a06a;--c2:#a9afb5;--c3:#9cc27e;--c4:#c29ad8;--c5:#d8bb55;--good:#8cc79a;--warn:#e6b07c}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.6 "Inter","Source Sans 3","Helvetica Neue",Arial,
system-ui,sans-serif;overflow-wrap:break-word}
header,main,footer{max-width:69rem;margin:0 auto;padding:0 clamp(1rem,4vw,2.5rem)}
header{padding-top:clamp(2rem,6vw,4.5rem)}
h1,h2,h3{font-family:"Charter","Iowan Old Style","Source Serif 4",Palatino,Georgia,serif;font-weight:600;
line-height:1.2;text-wrap:balance}
h1{font-size:clamp(1.9rem,5vw,2.9rem);margin:.2rem 0 .8rem;letter-spacing:-.01em}
h2{font-size:1.6rem;margin:0 0 .4rem}
h3{font-size:1.1rem;margin:2.2rem 0 .6rem}
section{margin:3.5rem 0 0;padding-top:1.6rem;border-top:1px solid var(--line)}
header+main>section:first-child{border:0;padding:0;margin-top:2rem}
p,.said{max-width:44rem}
p{margin:.4rem 0 1rem}
a{color:var(--c0)}
.kicker{margin:0;color:var(--muted);font-size:.82rem;letter-spacing:.08em;text-transform:uppercase}
.lead{font-size:1.13rem}
.quiet,figcaption,caption,.small{color:var(--muted);font-size:.87rem}
nav ul{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1.3rem;padding:0;margin:1.4rem 0 0;font-size:.93rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,15rem),1fr));gap:1rem;margin:1.2rem 0 1.6rem}
.card{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:1.1rem 1.3rem}
.card p{margin:0}
.big{font:600 2.7rem/1.15 "Charter","Iowan Old Style","Source Serif 4",Palatino,Georgia,serif;
font-variant-numeric:tabular-nums lining-nums}
.mark{font-weight:600}.mark.good{color:var(--good)}.mark.warn{color:var(--warn)}
.said{padding-left:1.15rem;margin:1rem 0}.said li{margin:.35rem 0}.said li::marker{color:var(--c0)}
.note{border-left:3px solid var(--warn);padding:.1rem 0 .1rem .9rem;margin:1rem 0;max-width:44rem}
.scroll{overflow-x:auto;margin:1rem 0;-webkit-overflow-scrolling:touch}
.scroll:focus-visible,summary:focus-visible,button:focus-visible,a:focus-visible{
outline:2px solid var(--c0);outline-offset:2px}
table{border-collapse:collapse;width:100%;font-size:.93rem;font-variant-numeric:tabular-nums lining-nums}
caption{text-align:left;padding:0 0 .5rem}
th,td{padding:.5rem .9rem .5rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
thead th{font-size:.83rem;color:var(--muted);font-weight:600;vertical-align:bottom;white-space:nowrap}
tbody th{font-weight:500}
td .range{display:block;color:var(--muted);font-size:.83rem;white-space:nowrap}
th .small{display:block;font-weight:400}
.numbers td{white-space:nowrap}
.numbers .text{white-space:normal;min-width:11rem}
code,pre{font-family:ui-monospace,"SF Mono","JetBrains Mono","DejaVu Sans Mono",Consolas,monospace;font-size:.85em}
pre{background:var(--shade);padding:1rem;border-radius:.4rem;overflow-x:auto;line-height:1.45}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,19rem),1fr));gap:1.6rem 2rem;
margin:1.2rem 0}
.panels.wide{grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr))}
figure{margin:0;min-width:0}
figcaption{margin-top:.35rem}
figure>h3,figure>h4{margin:0 0 .3rem}
h4{font-size:.98rem;margin:0 0 .3rem;font-weight:600}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font-size:12.5px;fill:var(--muted);font-family:inherit}
.wide svg text{font-size:8.5px}.wide svg .line{stroke-width:1.2}.wide svg .trace{stroke-width:.8}
svg .name{fill:var(--ink);font-size:13px}
svg .rule{stroke:var(--line)}svg .axis{stroke:var(--muted)}
svg .line{fill:none;stroke:currentColor;stroke-width:1.7;stroke-linejoin:round}
svg .trace{fill:none;stroke:var(--muted);stroke-width:1}
svg .dashed{stroke-dasharray:5 4}
svg .dot{fill:currentColor}
svg .whisker{stroke:currentColor;stroke-width:3;stroke-linecap:round;opacity:.55}
svg .hidden{fill:var(--shade)}
svg .level{stroke:var(--ink);stroke-width:1.2}svg .chance{stroke-dasharray:4 4}svg .ceiling{stroke-dasharray:1 3}
.c0{color:var(--c0)}.c1{color:var(--c1)}.c2{color:var(--c2)}.c3{color:var(--c3)}.c4{color:var(--c4)}.c5{color:var(--c5)}
.legend{display:flex;flex-wrap:wrap;gap:.1rem 1.1rem}
.swatch{display:inline-block;width:1.3rem;border-top:3px solid currentColor;vertical-align:middle;margin-right:.4rem}
.swatch.dashed{border-top-style:dashed}
.grid{list-style:none;padding:0;margin:1rem 0;display:grid;gap:1.5rem 2rem;
grid-template-columns:repeat(auto-fill,minmax(min(100%,27rem),1fr))}
.row{display:grid;grid-auto-columns:minmax(0,1fr);grid-auto-flow:column;gap:.35rem}
.row span{display:block;font-size:.72rem;line-height:1.3;color:var(--muted);overflow:hidden;text-overflow:ellipsis;
white-space:nowrap;padding-top:.2rem}
.row>div:first-child span{color:var(--ink);font-weight:600}
.row img,.strip img{display:block;width:100%;height:auto;border-radius:3px;background:var(--shade)}
.strip{display:grid;grid-template-columns:repeat(4,minmax(0,1fr));gap:.35rem}
.sorters{display:flex;flex-wrap:wrap;gap:.4rem;margin:.8rem 0;align-items:center}
button{font:inherit;font-size:.87rem;color:inherit;background:var(--card);border:1px solid var(--line);
border-radius:2rem;padding:.25rem .85rem;cursor:pointer}
button[aria-pressed=true]{border-color:var(--c0);color:var(--c0)}
details{border-bottom:1px solid var(--line);padding:.55rem 0}
summary{cursor:pointer}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,19rem),1fr));gap:.3rem 2rem;margin:.6rem 0}
.facts div{display:flex;gap:.8rem;justify-content:space-between;border-bottom:1px solid var(--line);padding:.25rem 0;
min-width:0}
.facts dt{color:var(--muted)}.facts dd{margin:0;text-align:right;min-width:0;overflow-wrap:anywhere}
footer{margin-top:4rem;padding-top:1.2rem;padding-bottom:3rem;color:var(--muted);font-size:.87rem}
@media (max-width:34rem){section{margin-top:2.6rem}.row span{font-size:.66rem}}
@media print{:root{color-scheme:light}body{font-size:10.5pt;background:#fff}nav,.sorters{display:none}
section,header,main{margin-top:1.2rem}figure,li,tr,.card{break-inside:avoid}h2,h3,h4{break-after:avoid}
.scroll{overflow:visible}pre{white-space:pre-wrap}details::details-content{
content-visibility:visible;display:block;height:auto}}
"""

SCRIPT = """
document.querySelectorAll('.grid[data-keys]').forEach(function(grid){
  var bar=document.createElement('div');bar.className='sorters';bar.append('Sort by');
  grid.dataset.keys.split(' ').forEach(function(key,first){
    var button=document.createElement('button');button.type='button';button.textContent=grid.dataset['name'+first];
    button.setAttribute('aria-pressed',first===0);
    button.onclick=function(){
      bar.querySelectorAll('button').forEach(function(other){other.setAttribute('aria-pressed',other===button)});
      Array.from(grid.children).sort(function(a,b){
        return b.getAttribute('data-'+key)-a.getAttribute('data-'+key)}).forEach(function(item){grid.append(item)});
    };bar.append(button)});
  grid.before(bar);
});
"""
