"""What TFDS with TensorFlow reads, in a process of its own: TensorFlow does not bear JAX or Mesa beside it.

Usage:  python tf_reader.py OUT.npz DIRECTORY...
"""

import sys

import numpy as np


def main(out: str, *directories: str) -> None:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.utils import flatten_nest_dict

    found = {}
    for directory in directories:
        builder = tfds.builder_from_directory(directory)
        for split in builder.info.splits:
            for number, episode in enumerate(builder.as_dataset(split, shuffle_files=False)):
                steps = [flatten_nest_dict(step) for step in episode["steps"].as_numpy_iterator()]
                for key in steps[0]:
                    values = np.stack([step[key] for step in steps])
                    found[f"{builder.name}|{split}|{number}|{key}"] = (
                        values if values.dtype.kind != "O" else values.astype("S")
                    )
    np.savez(out, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
