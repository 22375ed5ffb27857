"""The networks: no losses, no masks drawn, no shards read here."""

import logging

# diffusers imports xformers wherever it is installed, and on a CPU that prints seven lines about missing CUDA
# operators; which attention is live is said once by cadiff.attention.
logging.getLogger("xformers").setLevel(logging.ERROR)
