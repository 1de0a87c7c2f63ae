"""python -m benchmarks.warm

Imports what both sides import, so that none of the jobs measured after it pays for reading libraries from the disk.
"""

if __name__ == "__main__":
    from transformers import GPT2ForSequenceClassification, Trainer

    from src.config import build
    from src.evaluation import metrics as measure

    print(GPT2ForSequenceClassification, Trainer, build, measure)
