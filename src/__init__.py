"""Two ways to fine-tune a GPT, by a classification head and by instruction."""

import os
import sys

# A notebook's kernel names its backend of matplotlib to the commands that it starts, too, whose Python may lack it;
# matplotlib, which torchmetrics imports, would then refuse. What is drawn here needs none.
if "ipykernel" not in sys.modules:
    os.environ.pop("MPLBACKEND", None)
