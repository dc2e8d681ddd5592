"""What is on disk: folder layout, samples, augmentation, flow maps and the synthetic data set.

Every program imports this package first; that is where it sets up its streams.
"""

from datasets.streams import set_up_program

set_up_program()
