"""An experiment: arms made of stages, run directories named by content hash, and what has to run.

Under a working directory lie `corpora/ tokenizers/ rows/ stages/ evals/`, shared by all experiments there (what is finished is not
made again), and the run directories.
"""
