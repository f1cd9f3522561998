"""Fine-tune a language model, or compare ways to do it.

python train.py method=qlora data=jsonl data.path=my.jsonl       one run
python train.py --multirun method=full,lora,qlora                a comparison
python train.py --help                                           all groups and how to combine them
"""

import sys

from sweeptune.launch.entry import main
from sweeptune.report import show

if __name__ == "__main__":
    sys.exit(main(show=show))
