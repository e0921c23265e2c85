"""One call that makes a Hugging Face causal LM ready for learner and sampler."""

from __future__ import annotations

from transformers import PreTrainedModel

from archer.model.layers import use_own_layers
from archer.model.logprobs import fuse_head
from archer.model.packing import use_packed_attention


def adapt(model: PreTrainedModel) -> None:
    """Packed attention, a head that scores, own layers; on the parameters that the model has.

    From then on the model is called with the keyword `context` (`archer.model.packing`).
    """
    use_packed_attention(model)
    fuse_head(model)
    use_own_layers(model)
