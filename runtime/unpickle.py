"""Reading what torch.save wrote, without running code from the file."""

import io
import pickle
import warnings
from pathlib import Path

import torch


def load_tensors(source: Path | str | io.BytesIO) -> object:
    """Return the tensors, numbers, texts and containers in a file of torch.save, on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: anything else is wrong; one line says what.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on odd pickle protocols; the error says enough
            return torch.load(source, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except pickle.UnpicklingError:
        raise ValueError("it holds more than tensors, or is damaged") from None
    except Exception as error:  # damaged bytes make the unpickler raise whatever they lead to
        reason = str(error).strip().split("\n")[0][:200]
        raise ValueError(reason or type(error).__name__) from None
