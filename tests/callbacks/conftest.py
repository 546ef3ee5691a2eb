"""Quiet Lightning, one thread."""

import logging

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def quiet() -> None:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
