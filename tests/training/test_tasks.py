from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import MultiMarginLoss
from torch.optim import SGD
from torchmetrics.classification import MulticlassF1Score

from framework.training.schedules import wsd
from framework.training.tasks import Classification, LanguageModelling, MultiLabel, Regression, Task, scalars


def test_labels_are_found_apart_from_each_other() -> None:
    task = MultiLabel(3)
    target = torch.tensor([[1, 0, 1], [0, 0, 1]])
    outputs = torch.tensor([[5.0, -5.0, 5.0], [5.0, -5.0, -5.0]])
    metrics = task.metrics()
    task.update(metrics, outputs, {"labels": target})
    found = scalars(metrics, "val")
    assert found["val/precision"] == pytest.approx(2 / 3)
    assert found["val/recall"] == pytest.approx(2 / 3)
    assert found["val/f1"] == pytest.approx(2 / 3)
    assert task.decide(outputs).tolist() == [[True, False, True], [True, False, False]]
    assert task.loss(target * 200.0 - 100, {"labels": target}) < 1e-6


@pytest.mark.parametrize(("loss", "value"), [("mse", 2.5), ("mae", 1.5), ("huber", 1.0)])
def test_numbers_are_compared_by_the_loss_of_choice(loss: str, value: float) -> None:
    task = Regression(loss_name=loss)
    batch = {"y": torch.tensor([1.0, 2.0])}
    outputs = torch.tensor([[2.0], [4.0]])
    assert float(task.loss(outputs, batch)) == pytest.approx(value)
    metrics = task.metrics()
    task.update(metrics, outputs, batch)
    found = scalars(metrics, "val")
    assert found["val/rmse"] == pytest.approx(2.5**0.5)
    assert found["val/mae"] == pytest.approx(1.5)
    assert found["val/r2"] == pytest.approx(1 - 5 / 0.5)


@pytest.mark.parametrize(
    ("task", "outputs", "target"),
    [
        (Classification(3), torch.eye(3), torch.tensor([0, 1, 1])),
        (LanguageModelling(), torch.eye(3)[None], torch.tensor([[0, 1, 1]])),
    ],
)
def test_metrics_and_losses_of_choice_see_what_the_loss_sees(task: Task, outputs: Tensor, target: Tensor) -> None:
    further = {"macro": MulticlassF1Score(3, average="macro")}
    chosen = replace(task, further_metrics=further, loss_function=MultiMarginLoss())  # type: ignore[type-var]
    metrics = chosen.metrics()
    batch = {chosen.target: target}
    chosen.update(metrics, outputs, batch)
    assert scalars(metrics, "val")["val/macro"] == pytest.approx((1 + 2 / 3) / 3)
    assert chosen.loss(outputs, batch) == MultiMarginLoss()(outputs.view(-1, 3), target.flatten())
    with pytest.raises(ValueError, match="has a metric `loss` of its own"):
        replace(task, further_metrics={"loss": MulticlassF1Score(3)}).metrics()  # type: ignore[type-var]


def test_a_rate_rises_stays_and_falls() -> None:
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = wsd(optimizer, 100, warmup=0.1, decay=0.2)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.1)
    assert set(rates[9:81]) == {1.0}
    assert rates[90] == pytest.approx(0.5)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0)
