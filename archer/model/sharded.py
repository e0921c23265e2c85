"""Checkpoints that many ranks wrote, read as whole tensors in one process.

Two layouts are known by the files in a folder:

    model_world_size_{N}_rank_{R}.pt   a state dict of each rank of FSDP, as verl writes it and the
                                       code that Archer was released with
    .metadata, __{R}_{S}.distcp        a checkpoint of torch.distributed.checkpoint

The pieces are laid together by what each says of its place, bit for bit; no process group is
needed, and the number of ranks does not matter. What a file may name is limited to tensors and
their placement, so that reading runs no code of the file's. Optimizer states are left alone, and
so is tensor parallelism.
"""

from __future__ import annotations

import logging
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor import _dtensor_spec as spec

RANK_FILE = re.compile(r"model_world_size_(\d+)_rank_(\d+)\.pt")
METADATA = ".metadata"

RELEASED = "FSDP, one file a rank"
DISTRIBUTED = "torch.distributed.checkpoint"


class Record:
    """Stands for any class that a ShardedTensor is stored with; holds what the file says of one."""

    def __new__(cls, *_: Any) -> Record:
        return object.__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                vars(self).update(part)


class ShardedPieces(Tensor):
    """Stands for a ShardedTensor, which FSDP wrote without a mesh, and which torch itself reads
    only inside a process group. It has no values of its own, only the pieces of its rank."""

    pieces: list[Any]
    whole_shape: torch.Size

    def __setstate__(self, state: Any) -> None:
        self.pieces, metadata = state[0], state[1]
        self.whole_shape = torch.Size(metadata.size)

    @classmethod
    def __torch_dispatch__(cls, *_: Any) -> Any:
        raise AssertionError("nothing is computed with it")


def _any_attribute(*_: Any) -> type[Record]:
    """Stands for `getattr`, by which a pickle names a class inside of another."""
    return Record


OF_SHARDED_TENSORS = """
    metadata.ShardMetadata sharded_tensor.shard.Shard sharded_tensor.metadata.TensorProperties
    sharded_tensor.metadata.ShardedTensorMetadata sharded_tensor.metadata.MEM_FORMAT_ENCODING
    sharding_spec.chunk_sharding_spec.ChunkShardingSpec
    sharding_spec.api.EnumerableShardingSpec
"""

SPECIAL_CLASSES: list[Any] = [
    (ShardedPieces, "torch.distributed._shard.sharded_tensor.api.ShardedTensor"),
    (Record, "torch.distributed.remote_device._remote_device"),
    (_any_attribute, "builtins.getattr"),
    *((Record, f"torch.distributed._shard.{name}") for name in OF_SHARDED_TENSORS.split()),
    # By the names that torch gave them up to version 2.4; the present ones it knows by itself.
    (DTensor, "torch.distributed._tensor.api.DTensor"),
    (Shard, "torch.distributed._tensor.placement_types.Shard"),
    (Replicate, "torch.distributed._tensor.placement_types.Replicate"),
    (spec.DTensorSpec, "torch.distributed._tensor.placement_types.DTensorSpec"),
    (spec.TensorMeta, "torch.distributed._tensor.placement_types.TensorMeta"),
]

METADATA_NAMES = re.compile(
    r"torch\.distributed\.checkpoint\.filesystem\._StorageInfo"
    r"|torch\.distributed\.checkpoint\.metadata\.(Metadata|MetadataIndex|StorageMeta|"
    r"TensorStorageMetadata|BytesStorageMetadata|ChunkStorageMetadata|TensorProperties|"
    r"_MEM_FORMAT_ENCODING)"
    r"|torch\.(Size|u?int\d+|b?float\d+\w*|bool|serialization\._get_layout)"
    r"|pathlib\.(PosixPath|PurePosixPath)|collections\.OrderedDict"
)


def layout(folder: Path) -> str | None:
    """Which of the two layouts lies in this folder, None if neither does."""
    if any(RANK_FILE.fullmatch(path.name) for path in folder.glob("model_world_size_*")):
        return RELEASED
    return DISTRIBUTED if (folder / METADATA).is_file() else None


def read_sharded(folder: Path, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The whole tensors of a folder that has a `layout`, on the CPU, by name.

    Args:
        folder: holds the files of all ranks.
        shapes: what the model's state dict holds. It tells a plain tensor that every rank has from
            one of which each has a part, and a model from the other things in a checkpoint.

    Raises:
        ValueError: files are missing, damaged, of different numbers of ranks, or hold other things
            than tensors.
    """
    if layout(folder) == RELEASED:
        return _read_rank_files(folder, shapes)
    return _read_distributed(folder, shapes)


# ------------------------------------------------------------------ one file a rank


def _read_rank_files(folder: Path, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    paths = rank_files(folder)
    with torch.serialization.safe_globals(SPECIAL_CLASSES), _no_word_of_process_groups():
        ranks = [_state_dict(path) for path in paths]
    for path, rank in zip(paths, ranks, strict=True):
        if strange := sorted(ranks[0].keys() ^ rank.keys()):
            raise ValueError(
                f"{strange[0]!r} is not in both {paths[0].name} and {path.name} of {folder}: they "
                "are of different checkpoints; copy the folder again"
            )
    whole = {}
    for name in ranks[0]:
        try:
            whole[name] = _whole([rank[name] for rank in ranks], shapes.get(name))
        except ValueError as error:
            raise ValueError(f"{name!r} in {folder}: {error}") from error
    return whole


def rank_files(folder: Path) -> list[Path]:
    """The file of each rank in order. ValueError when one is missing or there are several sets."""
    found = [RANK_FILE.fullmatch(path.name) for path in folder.glob("model_world_size_*")]
    sizes = sorted({int(match[1]) for match in found if match})
    if len(sizes) > 1:
        raise ValueError(
            f"{folder} holds files of {' and of '.join(map(str, sizes))} ranks: leave those of one "
            "checkpoint in it"
        )
    paths = [folder / f"model_world_size_{sizes[0]}_rank_{rank}.pt" for rank in range(sizes[0])]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise ValueError(
            f"{folder} lacks {len(missing)} of {sizes[0]} files, {missing[0]} first: copy all that "
            "the ranks wrote, on every machine, into this folder"
        )
    return paths


def _state_dict(path: Path) -> dict[str, Tensor]:
    try:
        read = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(
            f"{path} holds more than tensors ({named[1] if named else _first_line(error)}) and is "
            "not read, because that could run code: merge it with the code that wrote it"
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged or not of torch.save ({_first_line(error)}): copy it again"
        ) from error
    values = read.values() if isinstance(read, dict) else [read]
    if strange := [type(v).__name__ for v in values if not isinstance(v, Tensor)]:
        raise ValueError(
            f"{path} is no state dict of tensors (it holds a {strange[0]}): give the folder of a "
            "model's checkpoint"
        )
    found: dict[str, Tensor] = read
    return found


def _whole(parts: Sequence[Tensor], shape: torch.Size | None) -> Tensor:
    """One tensor of the parts that the ranks hold of it."""
    if all(isinstance(part, DTensor) for part in parts):
        return _placed(parts)
    if all(isinstance(part, ShardedPieces) for part in parts):
        return _pieced(parts)
    if any(isinstance(part, DTensor | ShardedPieces) for part in parts):
        raise ValueError("sharded on some ranks only; copy the checkpoint again")
    parts = [part.detach() for part in parts]
    if parts[0].shape == shape and all(same_bits(parts[0], part) for part in parts):
        return parts[0]
    return torch.cat(parts)


def _placed(parts: Sequence[Any]) -> Tensor:
    """Of DTensors: each knows the coordinates of its rank in the mesh of ranks.

    No operation is called on one: torch would give its result the mesh of an equal tensor, which
    may be that of another rank.
    """
    placements = parts[0].placements
    for part in parts:
        strange = [p for p in part.placements if type(p) not in (Shard, Replicate)]
        if strange or part.placements != placements:
            raise ValueError(
                f"placed as {part.placements}, but only Shard and Replicate, alike on all ranks, "
                "can be laid together; merge it with the code that wrote it"
            )
    places: dict[tuple[int, ...], Tensor] = {}
    for part in parts:
        place = tuple(part.device_mesh.get_coordinate())
        with torch.no_grad():
            local = part.to_local().detach()
        if not same_bits(places.setdefault(place, local), local):
            raise ValueError(DIFFERENT_COPIES)
    whole = _joined(places, placements)
    if whole.shape != parts[0].shape:
        raise ValueError(
            f"the ranks hold {list(whole.shape)} of {list(parts[0].shape)}; copy the files of all "
            "ranks of one checkpoint"
        )
    return whole


DIFFERENT_COPIES = "its copies differ between ranks; take an earlier checkpoint"


def _joined(places: Mapping[tuple[int, ...], Tensor], placements: Sequence[Any]) -> Tensor:
    """Parts by coordinates, joined along the first dimension of the mesh after all others."""
    if not placements:
        return places[()]
    rows: dict[int, dict[tuple[int, ...], Tensor]] = {}
    for (first, *rest), part in places.items():
        rows.setdefault(first, {})[tuple(rest)] = part
    parts = [_joined(rows[row], placements[1:]) for row in sorted(rows)]
    if isinstance(placements[0], Shard):
        # A rank beyond the last row of a small tensor holds nothing, in whatever shape.
        return torch.cat([p for p in parts if p.numel()] or parts[:1], dim=placements[0].dim)
    if not all(same_bits(parts[0], part) for part in parts):
        raise ValueError(DIFFERENT_COPIES)
    return parts[0]


def _pieced(parts: Sequence[Any]) -> Tensor:
    """Of ShardedTensors, cut along their first dimension: each piece knows where it begins."""
    pieces = [piece for part in parts for piece in part.pieces]
    pieces.sort(key=lambda piece: tuple(piece.metadata.shard_offsets))
    rows = 0
    for piece in pieces:
        begin, *others = piece.metadata.shard_offsets
        if begin != rows or any(others):
            break
        rows += len(piece.tensor)
    whole = torch.cat([piece.tensor for piece in pieces])
    if rows != len(whole) or whole.shape != parts[0].whole_shape:
        raise ValueError(
            f"the ranks hold rows 0 to {rows} of {list(parts[0].whole_shape)} and then others; "
            "copy the files of all ranks of one checkpoint"
        )
    return whole


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are the same in type, shape and every bit, NaNs included."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    pair = (tensor.contiguous().flatten().view(torch.uint8) for tensor in (first, second))
    return torch.equal(*pair)


@contextmanager
def _no_word_of_process_groups() -> Iterator[None]:
    """torch logs for every mesh that its process groups are not there; nobody needs them here."""
    logger = logging.getLogger("torch.distributed.device_mesh")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


# ------------------------------------------------------------------ torch.distributed.checkpoint


def _read_distributed(folder: Path, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    return read_distributed(folder, _prefix(_stored(folder), shapes))


def read_distributed(folder: Path, prefix: str) -> dict[str, Tensor]:
    """The whole tensors whose names begin with `prefix`, without it; see `read_sharded`."""
    stored = _stored(folder)
    names = {name.removeprefix(prefix): name for name in stored if name.startswith(prefix)}
    tensors = {
        full: torch.empty(stored[full].size, dtype=stored[full].properties.dtype)
        for full in names.values()
    }
    with warnings.catch_warnings():  # it tells that there is one process, as was asked for
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        try:
            load(tensors, checkpoint_id=folder, no_dist=True)
        except CheckpointException as error:
            first = next(iter(error.failures.values()))[0]
            raise ValueError(
                f"a file of {folder} cannot be read ({_first_line(first)}): copy all that the "
                "ranks wrote, on every machine, into this folder"
            ) from error
    return {name: tensors[full] for name, full in names.items()}


def _stored(folder: Path) -> dict[str, TensorStorageMetadata]:
    return {
        name: entry
        for name, entry in _metadata(folder).state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def _prefix(stored: Mapping[str, Any], shapes: Mapping[str, torch.Size]) -> str:
    """What stands before the model's names: `{"model": state_dict, ...}` is stored flat."""
    first = next(iter(shapes))
    return next((before for before in ("", "model.") if before + first in stored), "")


class MetadataReader(pickle.Unpickler):
    """Reads `.metadata`, which is a pickle, and refuses every name that is not of its kind.

    torch reads the same bytes without such a check, so this one comes first.
    """

    def find_class(self, module: str, name: str) -> Any:
        if METADATA_NAMES.fullmatch(f"{module}.{name}") is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which could run code")
        return super().find_class(module, name)


def _metadata(folder: Path) -> Metadata:
    path = folder / METADATA
    try:
        with open(path, "rb") as file:
            read = MetadataReader(file).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read ({_first_line(error)}): copy the checkpoint again"
        ) from error
    if not isinstance(read, Metadata):
        raise ValueError(f"{path} is of no checkpoint (a {type(read).__name__}): give another")
    return read


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
