"""sweeptune: full fine-tuning, LoRA or QLoRA, measured on your model, your data and your GPU."""

import logging

# At its import bitsandbytes advises to install a package that is of no use here; the advice must not reach the user.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
