"""Copies the committed models of `model_repository/` and sets the parameters of their `config.pbtxt`."""

from __future__ import annotations

import re
from pathlib import Path

from drafthouse_build.errors import BuildError

DRAFTER_PREFIX = "drafter_"
SHARED_MODELS = ("cosine", "router", "fusion", "target")
CONFIG_NAME = "config.pbtxt"
ADAPTER_NAME = "1/model.py"
_PARAMETER = r'(parameters \{{ key: "{key}" value \{{ string_value: ")([^"]*)(" \}} \}})'


def read_parameter(model: Path, key: str) -> str:
    """The value of one parameter in `model`'s config.pbtxt; raises `BuildError` when it is not there."""
    file = model / CONFIG_NAME
    found = re.search(_PARAMETER.format(key=re.escape(key)), _read(file))
    if found is None:
        raise BuildError("INVALID_ARG", "templates", file, f"a config.pbtxt with the parameter {key}")
    return found[2]


def committed_drafters(templates: Path) -> list[str]:
    """Names of the drafters that the committed repository serves, in its order."""
    return [name for name in read_parameter(templates / "cosine", "drafters").split(",") if name]


def copy_model(templates: Path, output: Path, name: str, parameters: dict[str, str]) -> None:
    """Writes `output/name` from `templates/name` with other values for `parameters`."""
    config = _read(templates / name / CONFIG_NAME)
    _write_model(output / name, _with_parameters(config, parameters), _read(templates / name / ADAPTER_NAME))


def make_drafter(templates: Path, output: Path, domain: str, parameters: dict[str, str]) -> None:
    """Writes `output/drafter_<domain>` from the first committed drafter, its name replaced."""
    committed = committed_drafters(templates)[0]
    source = templates / (DRAFTER_PREFIX + committed)
    config = re.sub(rf"(?m)^(#.*)\b{re.escape(committed)}\b", rf"\g<1>{domain}", _read(source / CONFIG_NAME))
    adapter = _read(source / ADAPTER_NAME).replace(DRAFTER_PREFIX + committed, DRAFTER_PREFIX + domain)
    _write_model(output / (DRAFTER_PREFIX + domain), _with_parameters(config, parameters), adapter)


def put_on_gpu(model: Path, device: int) -> None:
    """Has Triton run the model's instance on GPU `device`."""
    file = model / CONFIG_NAME
    group = f"instance_group [ {{ kind: KIND_GPU count: 1 gpus: [ {device} ] }} ]"
    config, count = re.subn(r"instance_group \[.*\]", group, _read(file))
    if count != 1:
        raise BuildError("INVALID_ARG", "templates", f"{count} instance groups", "a config.pbtxt with one, on a line of its own")
    file.write_text(config, encoding="utf-8")


def _with_parameters(config: str, parameters: dict[str, str]) -> str:
    for key, value in parameters.items():
        config, count = re.subn(_PARAMETER.format(key=re.escape(key)), rf"\g<1>{value}\g<3>", config)
        if count != 1:
            raise BuildError("INVALID_ARG", "templates", f"{count} parameters {key}", "a config.pbtxt that names it once")
    return config


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise BuildError("INVALID_ARG", "templates", file, "the model_repository folder of a Drafthouse source checkout") from error


def _write_model(folder: Path, config: str, adapter: str) -> None:
    (folder / ADAPTER_NAME).parent.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_NAME).write_text(config, encoding="utf-8")
    (folder / ADAPTER_NAME).write_text(adapter, encoding="utf-8")
