"""Official downloads, brought into this project's layout (see `datasets.layout`)."""
