"""What many ranks wrote is put together bit for bit, whoever and however many they were."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from archer.cli import main
from archer.export import export
from archer.merge import WeightParity
from archer.model.sharded import RELEASED, layout, read_sharded, same_bits
from archer.model.tiny import tiny_tokenizer
from archer.terminal import Terminal
from tests.children import child_environment
from tests.ranks import model


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of one model by 1, 2 and 4 processes, and `base` with its config."""
    out = tmp_path_factory.mktemp("ranks")
    program = Path(__file__).with_name("ranks.py")
    command = [sys.executable, str(program), str(out), "1", "2", "4"]
    subprocess.run(command, check=True, env=child_environment())
    base = model()
    base.generation_config = GenerationConfig(eos_token_id=0, temperature=0.7, do_sample=True)
    base.config.save_pretrained(out / "base")
    base.generation_config.save_pretrained(out / "base")
    tiny_tokenizer().save_pretrained(out / "base")
    return out


def exported(
    checkpoint: Path, out: Path, base: Path | None, *, dtype: str = "float32", size: str = "5GB"
) -> dict[str, torch.Tensor]:
    export(
        checkpoint,
        out,
        dtype=dtype,
        terminal=Terminal(quiet=True),
        base=None if base is None else str(base),
        max_shard_size=size,
    )
    tensors: dict[str, torch.Tensor] = {}
    for file in out.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


def own(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {name: p.detach().to(dtype) for name, p in model().named_parameters()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(same_bits(first[n], second[n]) for n in first)


LAYOUTS = [f"{kind}-{ranks}" for kind in ("released", "ours", "nested") for ranks in (1, 2, 4)]

MESHES = [f"{kind}-{ranks}" for kind in ("replicas", "meshless") for ranks in (2, 4)]


@pytest.mark.parametrize("name", [*LAYOUTS, *MESHES])
def test_both_layouts_from_any_number_of_ranks_export_to_the_same_bits(
    written: Path, tmp_path: Path, name: str
) -> None:
    assert same(exported(written / name, tmp_path / "out", written / "base"), own())


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_bfloat16_checkpoints_keep_their_bits_in_either_type(
    written: Path, tmp_path: Path, ranks: int
) -> None:
    for dtype in ("bfloat16", "float32"):
        found = exported(written / f"half-{ranks}", tmp_path / dtype, written / "base", dtype=dtype)
        assert same(found, {n: w.to(getattr(torch, dtype)) for n, w in own(torch.bfloat16).items()})
        parity = json.loads((tmp_path / dtype / "parity.json").read_text())
        assert parity["read"] == "bfloat16"
        assert parity["largest_rounding"] == 0.0


def test_the_largest_rounding_is_told(written: Path, tmp_path: Path) -> None:
    found = exported(written / "released-2", tmp_path / "out", written / "base", dtype="bfloat16")
    largest = max(float((found[n].float() - w).abs().max()) for n, w in own().items())
    parity = WeightParity(**json.loads((tmp_path / "out" / "parity.json").read_text()))
    assert parity == WeightParity(
        tensors=len(own()),
        parameters=sum(w.numel() for w in own().values()),
        read="float32",
        dtype="bfloat16",
        not_exported=0,
        largest_rounding=largest,
    )
    assert largest > 0
    assert f"at most {largest:.1e}" in (tmp_path / "out" / "README.md").read_text()


def test_the_folder_of_a_step_needs_no_base_and_brings_all_that_lay_with_it(
    written: Path, tmp_path: Path
) -> None:
    actor = tmp_path / "global_step_20" / "actor"
    shutil.copytree(written / "released-2", actor)
    shutil.copytree(written / "base", actor / "huggingface")
    out = tmp_path / "out"
    assert same(exported(tmp_path / "global_step_20", out, None), own())
    assert GenerationConfig.from_pretrained(out).temperature == 0.7
    tokenizers: list[Any] = [AutoTokenizer.from_pretrained(f) for f in (written / "base", out)]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
    assert tokenizers[0].chat_template == tokenizers[1].chat_template
    card = (out / "README.md").read_text()
    assert "checkpoint `global_step_20/actor` (FSDP, one file a rank, written by 2)" in card
    assert str(tmp_path) not in card


def test_shards_stay_below_the_limit_and_what_is_tied_is_stored_once(
    written: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    found = exported(written / "ours-4", out, written / "base", size="50KB")
    files = list(out.glob("model-*.safetensors"))
    assert len(files) > 1
    assert all(path.stat().st_size < 52_000 for path in files)
    assert not any("lm_head" in name for name in found)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_meshes_and_names_of_older_torch_are_read(written: Path, tmp_path: Path) -> None:
    """A mesh was a tensor of ranks, and the classes lived elsewhere: as near to a file of theirs as
    can be had without their torch."""
    for rank in range(2):
        name = f"model_world_size_2_rank_{rank}.pt"
        state = torch.load(written / "released-2" / name, weights_only=True)
        for tensor in state.values():
            mesh = tensor.device_mesh
            vars(mesh).clear()
            vars(mesh).update(
                device_type="cuda",
                mesh=torch.arange(2),
                mesh_dim_names=("fsdp",),
                _flatten_mesh_list=(0, 1),
                _thread_id=None,
                _dim_group_infos=[("", [0, 1], "0")],
                _coordinate_on_dim=[rank],
            )
        torch.save(state, tmp_path / name)
        _give_old_names(tmp_path / name)
    shapes = {name: tensor.shape for name, tensor in model().state_dict().items()}
    assert same(read_sharded(tmp_path, shapes), dict(model().state_dict()))


def _give_old_names(path: Path) -> None:
    """Rewrites the class names in a file of torch.save; they stand there as text."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in contents if name.endswith("data.pkl"))
    for new, old in (
        (b"ctorch.distributed.tensor\nDTensor\n", b"ctorch.distributed._tensor.api\nDTensor\n"),
        (b"ctorch.distributed.tensor._dtensor_spec\n", b"c" + OLD_HOME),
        (b"ctorch.distributed.tensor.placement_types\n", b"c" + OLD_HOME),
    ):
        assert new in contents[pickled]
        contents[pickled] = contents[pickled].replace(new, old)
    contents[pickled] = contents[pickled].replace(
        b"c" + OLD_HOME + b"ShardOrderEntry\n",
        b"ctorch.distributed.tensor._dtensor_spec\nShardOrderEntry\n",
    )
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


OLD_HOME = b"torch.distributed._tensor.placement_types\n"


def test_plain_tensors_are_whole_on_every_rank_or_parts_in_order(tmp_path: Path) -> None:
    whole = {"a": torch.randn(5, 3), "b": torch.randn(4)}
    for rank, rows in enumerate((slice(0, 3), slice(3, 5))):
        state = {"a": whole["a"][rows].clone(), "b": whole["b"]}
        torch.save(state, tmp_path / f"model_world_size_2_rank_{rank}.pt")
    assert layout(tmp_path) == RELEASED
    shapes = {name: tensor.shape for name, tensor in whole.items()}
    assert same(read_sharded(tmp_path, shapes), whole)


# ------------------------------------------------------------------ what is refused


def _save(value: Any, rank: int = 1) -> Callable[[Path], None]:
    return lambda folder: torch.save(value, folder / f"model_world_size_2_rank_{rank}.pt")


def _cut(folder: Path) -> None:
    path = folder / "model_world_size_2_rank_1.pt"
    path.write_bytes(path.read_bytes()[:3000])


def _two_sets(folder: Path) -> None:
    path = folder / "model_world_size_2_rank_1.pt"
    shutil.copy(path, folder / "model_world_size_4_rank_3.pt")


def _other_copy(folder: Path) -> None:
    for rank in range(2):
        tensor = {"model.norm.weight": torch.ones(64)}
        torch.save(tensor, folder / f"model_world_size_2_rank_{rank}.pt")


def _missing(folder: Path) -> None:
    (folder / "model_world_size_2_rank_1.pt").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_missing, "lacks 1 of 2 files, model_world_size_2_rank_1.pt first: copy all"),
        (_two_sets, "holds files of 2 and of 4 ranks: leave those of one"),
        (_save([1, 2]), "no state dict of tensors (it holds a list)"),
        (_save({"step": 3}), "no state dict of tensors (it holds a int)"),
        (_save({"a": Fraction(1, 2)}), "holds more than tensors (fractions.Fraction)"),
        (_save({"a": torch.ones(2)}), "is not in both model_world_size_2_rank_0.pt"),
        (_cut, "is damaged or not of torch.save"),
        (_other_copy, "of another model than"),
    ],
)
def test_a_spoilt_folder_is_refused_in_one_line(
    written: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
    message: str,
) -> None:
    folder, out = tmp_path / "actor", tmp_path / "out"
    shutil.copytree(written / "released-2", folder)
    spoil(folder)
    arguments = ["export", folder, out, "--base", written / "base", "--quiet"]
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not out.exists()


def test_a_lost_piece_of_a_sharded_tensor_is_noticed(written: Path, tmp_path: Path) -> None:
    folder = tmp_path / "meshless"
    shutil.copytree(written / "meshless-4", folder)
    names = [f"model_world_size_4_rank_{rank}.pt" for rank in (0, 1)]
    shutil.copy(folder / names[0], folder / names[1])
    with pytest.raises(ValueError, match="the ranks hold"):
        exported(folder, tmp_path / "out", written / "base")


def test_copies_that_differ_are_refused(written: Path, tmp_path: Path) -> None:
    folder = tmp_path / "replicas"
    shutil.copytree(written / "replicas-4", folder)
    path = folder / "model_world_size_4_rank_3.pt"
    state = torch.load(path, weights_only=True)
    with torch.no_grad():
        state["model.norm.weight"].to_local()[0] += 1
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"'model.norm.weight' .* copies differ between ranks"):
        exported(folder, tmp_path / "out", written / "base")


def test_no_code_of_a_checkpoint_is_run(written: Path, tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "touched",)

    for name, spoil in (
        ("released-2", _save({"a": Touch()})),
        ("ours-2", lambda folder: (folder / ".metadata").write_bytes(pickle.dumps(Touch()))),
    ):
        folder = tmp_path / name
        shutil.copytree(written / name, folder)
        spoil(folder)
        with pytest.raises(ValueError, match="could run code"):
            exported(folder, tmp_path / "out", written / "base")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("cut", [None, 2000])
def test_a_missing_or_cut_file_of_ours_is_refused(
    written: Path, tmp_path: Path, cut: int | None
) -> None:
    folder = tmp_path / "ours"
    shutil.copytree(written / "ours-2", folder)
    path = folder / "__1_0.distcp"
    content = path.read_bytes()
    path.unlink()
    if cut:
        path.write_bytes(content[:cut])
    with pytest.raises(ValueError, match="cannot be read"):
        exported(folder, tmp_path / "out", written / "base")


def test_another_base_is_refused(written: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="of another model than 'tiny'"):
        export(
            written / "ours-2",
            tmp_path / "out",
            dtype="float32",
            terminal=Terminal(quiet=True),
            base="tiny",
        )


def test_two_tensors_for_what_the_config_ties_are_refused(written: Path, tmp_path: Path) -> None:
    state = dict(model(tied=False).state_dict())
    torch.save(state, tmp_path / "model_world_size_1_rank_0.pt")
    with pytest.raises(ValueError, match=r"ties lm_head.weight to model.embed_tokens.weight"):
        exported(tmp_path, tmp_path / "out", written / "base")


def test_without_any_config_a_base_is_asked_for(written: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name the model that it was trained from with --base"):
        exported(written / "released-2", tmp_path / "out", None)


@pytest.mark.parametrize("size", ["0GB", "5", "big"])
def test_a_size_that_is_none_is_refused(written: Path, tmp_path: Path, size: str) -> None:
    with pytest.raises(ValueError, match="is no size of a file"):
        exported(written / "ours-2", tmp_path / "out", written / "base", size=size)
