"""SM3 where an optimizer is expected: plain loops with everything PyTorch has, Hugging Face Trainer, Lightning."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sm3 import SM3, warmup, warmup_cooldown


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


def batches(count: int, size: int = 12) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    data = [torch.randn(size, 8, generator=generator) for _ in range(count)]
    return [(x, x.sum(1, keepdim=True).sin()) for x in data]


def loss_of(net: nn.Module, batch) -> torch.Tensor:
    return nn.functional.mse_loss(net(batch[0]), batch[1])


def trained(net: nn.Module, forward: nn.Module | None = None) -> list[torch.Tensor]:
    optimizer = SM3(net.parameters(), lr=0.1, momentum=0.9)
    for batch in batches(5):
        optimizer.zero_grad()
        loss_of(forward or net, batch).backward()
        optimizer.step()
    return [param.detach() for param in net.parameters()]


def assert_equal(first, second) -> None:
    assert all(map(torch.equal, first, second))


def test_a_complete_loop_with_warm_up_and_cool_down_learns() -> None:
    net = model()
    optimizer = SM3(net.parameters(), lr=0.3, momentum=0.9)
    schedule = warmup_cooldown(optimizer, total_steps=200)
    losses = []
    for batch in batches(10, 64) * 20:
        loss = loss_of(net, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.25 * sum(losses[:10])
    assert schedule.get_last_lr() == [0.0]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_trains_as_an_eager_one(backend) -> None:
    eager, compiled = model(), model()
    for first, second in zip(trained(eager), trained(compiled, torch.compile(compiled, backend=backend)), strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("options", [{"kernel": "chunked"}, {"momentum": 0.9, "momentum_dtype": "int8"}, {}], ids=str)
def test_a_compiled_training_step_leaves_the_optimizer_as_it_is(options) -> None:
    results = []
    for compiled in (False, True):
        net = model()
        optimizer = SM3(net.parameters(), lr=0.1, **options)

        def step(batch, net=net, optimizer=optimizer) -> None:
            optimizer.zero_grad()
            loss_of(net, batch).backward()
            optimizer.step()

        run = torch.compile(step, backend="eager") if compiled else step
        for batch in batches(3):
            run(batch)
        results.append([param.detach() for param in net.parameters()])
    assert_equal(*results)


def test_accumulated_gradients_equal_one_large_batch() -> None:
    parts, whole = model(), model()
    x, y = batches(1, 16)[0]
    for half in (slice(0, 8), slice(8, 16)):
        (loss_of(parts, (x[half], y[half])) / 2).backward()
    loss_of(whole, (x, y)).backward()
    for net in (parts, whole):
        SM3(net.parameters(), lr=0.1).step()
    for first, second in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(first, second)


def test_a_step_in_backward_equals_a_step_after_it() -> None:
    """One optimizer per parameter, stepped as soon as its gradient is there, which is then dropped."""
    inside = model()
    optimizers = {param: SM3([param], lr=0.1, momentum=0.9) for param in inside.parameters()}

    def step(param: torch.Tensor) -> None:
        optimizers[param].step()
        optimizers[param].zero_grad()

    for param in inside.parameters():
        param.register_post_accumulate_grad_hook(step)
    for batch in batches(5):
        loss_of(inside, batch).backward()
        assert all(param.grad is None for param in inside.parameters())
    assert_equal([param.detach() for param in inside.parameters()], trained(model()))


def test_grad_scaler_scales_back_and_skips_a_step_with_inf() -> None:
    scaled, plain = model(), model()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    first, second = SM3(scaled.parameters(), lr=0.1), SM3(plain.parameters(), lr=0.1)
    for batch in batches(3):
        first.zero_grad()
        scaler.scale(loss_of(scaled, batch)).backward()
        scaler.unscale_(first)
        torch.nn.utils.clip_grad_norm_(scaled.parameters(), 100.0)
        scaler.step(first)
        scaler.update()
        second.zero_grad()
        loss_of(plain, batch).backward()
        second.step()
    assert_equal(scaled.parameters(), plain.parameters())
    before = copy.deepcopy([*scaled.parameters(), *first.state_dict()["state"][0].values()])
    scaled[0].weight.grad[0, 0] = torch.inf
    scaler.scale(torch.zeros(()))
    scaler.step(first)
    scaler.update()
    assert_equal(before, [*scaled.parameters(), *first.state_dict()["state"][0].values()])
    assert scaler.get_scale() == 512.0


def test_autocast_with_float16_parameters_stays_finite() -> None:
    """Known defect of other implementations: a zero gradient in float16 gave NaN."""
    param = nn.Parameter(torch.ones(4, 4, dtype=torch.float16))
    optimizer = SM3([param], lr=0.1)
    for _ in range(3):
        param.grad = torch.eye(4, dtype=torch.float16)
        optimizer.step()
    assert param.isfinite().all()
    assert (param[0, 1] == 1).all()


def test_step_hooks_run() -> None:
    param = nn.Parameter(torch.zeros(2))
    optimizer, seen = SM3([param]), []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    optimizer.step()
    assert seen == ["before", "after"]


def test_hugging_face_trainer(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=32, n_positions=16)
    net = transformers.GPT2LMHeadModel(config)
    tokens = torch.arange(16) % 7
    data = [{"input_ids": tokens, "labels": tokens}] * 64
    optimizer = SM3(net.named_parameters(), lr=0.1, momentum=0.9)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        max_steps=16,
        logging_steps=1,
        save_steps=8,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(net, arguments, train_dataset=data, optimizers=(optimizer, warmup(optimizer, 4)))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    saved = torch.load(tmp_path / "checkpoint-8" / "optimizer.pt", weights_only=True)
    assert saved["param_groups"][0]["cover"] == "slices"


def test_lightning(tmp_path) -> None:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.losses = model(), []

        def training_step(self, batch, _) -> torch.Tensor:
            loss = loss_of(self.net, batch)
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            optimizer = SM3(self.parameters(), lr=0.3, momentum=0.9)
            schedule = {"scheduler": warmup_cooldown(optimizer, 200), "interval": "step"}
            return {"optimizer": optimizer, "lr_scheduler": schedule}

    module = Module()
    trainer = lightning.Trainer(
        max_epochs=20,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        default_root_dir=str(tmp_path),
    )
    trainer.fit(module, torch.utils.data.DataLoader(batches(10, 64), batch_size=None))
    assert sum(module.losses[-10:]) < 0.5 * sum(module.losses[:10])
