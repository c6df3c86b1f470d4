"""Numbers of ranks that cannot be meant are refused before any rank waits for another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.fabric.plugins.environments import (
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from ranks import srun, torchrun
from strategy_models import trainer

from lightning_llm import CausalLM
from lightning_llm.models import TransformerConfig
from lightning_llm.strategies import DDPStrategy, FSDP2Strategy, SingleDeviceStrategy
from lightning_llm.strategies.launch import check_devices, check_launch

TASKS = 4


@pytest.fixture(params=["torchrun", "srun"])
def environment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> object:
    launcher, kind = {
        "torchrun": (torchrun, TorchElasticEnvironment),
        "srun": (srun, SLURMEnvironment),
    }[request.param]
    for name, value in launcher(1, TASKS, 29500).items():
        monkeypatch.setenv(name, value)
    return kind()


def test_right_numbers_pass(environment: object) -> None:
    check_launch(environment, 4, 1)  # type: ignore[arg-type]
    check_launch(None, 1, 1)


@pytest.mark.parametrize(("devices", "nodes"), [(1, 1), (2, 1), (8, 1), (2, 2), (4, 2)])
def test_others_are_refused_with_the_right_ones(
    environment: object, devices: int, nodes: int
) -> None:
    with pytest.raises(ValueError) as caught:
        check_launch(environment, devices, nodes)  # type: ignore[arg-type]
    message = str(caught.value)
    assert f"trainer.devices={devices} and trainer.num_nodes={nodes} stand for" in message
    assert "started 4, 4 on each machine: set trainer.devices=4 and trainer.num_nodes=1" in message
    command = "torchrun --nnodes {} --nproc-per-node {}"
    if isinstance(environment, SLURMEnvironment):
        command = "srun --nodes {} --ntasks-per-node {}"
    assert message.endswith(command.format(nodes, devices))


def test_the_strategy_asks_before_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in srun(0, TASKS, 29500).items():
        monkeypatch.setenv(name, value)
    runner = trainer(strategy=FSDP2Strategy(), devices=2)
    config = TransformerConfig(vocab_size=8, max_seq_len=8, n_layers=2, dim=8, n_heads=1)
    with pytest.raises(ValueError, match="srun started 4"):
        runner.fit(CausalLM(config), torch.utils.data.DataLoader([]))


def test_one_process_of_a_batch_script_may_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for task in (0, 1):
        for name, value in srun(task, TASKS, 29500).items():
            monkeypatch.setenv(name, value)
        if task == 0:
            check_launch(SLURMEnvironment(), 1, 1, alone=True)
            continue
        with pytest.raises(ValueError, match="srun started 4"):
            check_launch(SLURMEnvironment(), 1, 1, alone=True)


def test_tasks_that_take_themselves_for_a_shell_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    check_launch(LightningEnvironment(), 2, 1)
    for name, value in srun(3, TASKS, 29500).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    with pytest.raises(ValueError, match="srun --job-name train"):
        check_launch(LightningEnvironment(), 2, 1)


@pytest.mark.parametrize("devices", [2, "2", [0, 1]])
def test_several_devices_for_a_strategy_of_one_are_refused(devices: Any) -> None:
    with pytest.raises(ValueError, match="with SingleDeviceStrategy, which uses one device"):
        check_devices(SingleDeviceStrategy("cpu"), devices)
    check_devices(DDPStrategy(), devices)
    check_devices("auto", devices)
    for one in (1, "1", [0], "auto", -1, "-1"):
        check_devices(SingleDeviceStrategy("cpu"), one)
