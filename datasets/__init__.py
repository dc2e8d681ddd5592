"""What is on disk: folder layout, samples, augmentation, flow maps and the synthetic data set.

Every program of this project imports this package first; that is where it sets up its streams.
"""

from datasets.streams import is_own_program, set_up_program

if is_own_program():
    set_up_program()
