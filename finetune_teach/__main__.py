"""`python -m finetune_teach` is the command `finetune-teach`."""
import sys

from finetune_teach.tools.command_line import main

if __name__ == '__main__':
    sys.exit(main())
