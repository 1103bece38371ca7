"""A drop-in for TRL's DPOTrainer that computes its forward on article trees: `from pipeline.trl import TreeDPOTrainer`.

Datasets, PEFT, callbacks, losses, metrics and checkpoints stay TRL's. `trainer` is the subclass, `tree_forward` lays a
padded batch out as a tree and computes what TRL's forward returns, and `sampler` brings pairs of one prompt together.
"""

from importlib.util import find_spec

if find_spec("trl") is None:
    raise ImportError(
        "TreeDPOTrainer is a subclass of TRL's DPOTrainer: install it with `pip install 'rondo-dpo[trl]'`"
    )

from pipeline.trl.trainer import TreeDPOTrainer

__all__ = ["TreeDPOTrainer"]
