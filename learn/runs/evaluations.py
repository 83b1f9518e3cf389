"""Results of a run's evaluations, so that repeating one plays no game and makes no pass.

RESULTS/evaluations/{identity}.json    what was asked, and the result

Games follow from the network, the options, and the seeds: the same evaluation would give the same
result. It counts as the same only if its options are spelled alike, and nothing is found if
`eval.csv` or the fusion's weights were removed. A run with a user's own fusion is played every time,
because that code may have changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from wsa.learn.configs.evaluation import EvaluationRequest
from wsa.learn.evaluation import attention_log
from wsa.learn.report.document import versions
from wsa.learn.runs.config import read_config, rename_results
from wsa.learn.runs.evaluate import Evaluation
from wsa.learn.training import checkpoint
from wsa.store.common import atomic_files, hashing, user_code
from wsa.store.common.errors import DamagedError
from wsa.store.format import records

FOLDER = "evaluations"
TABLE = "eval.csv"
_NOTHING_PLAYED = {
    "frames": 0,
    "found_in_store": 0,
    "seen_before_live": 0,
    "hit_rate": 0.0,
    "backbone_passes": 0,
    "seconds": 0.0,
}


class EvaluationKey(EvaluationRequest, frozen=True, kw_only=True):
    """Everything that the games of an evaluation depend on: also the checksum of the network's
    checkpoint, and versions of wsa and of the libraries it uses.
    """

    checkpoint: str
    versions: str


class Recorded(msgspec.Struct, frozen=True):
    """A finished evaluation, with `Evaluation.summary` as its result.

    `weights` is the checksum of its `eval_weights.npz`; "" if the fusion has no weights.
    """

    asked: EvaluationKey
    result: dict[str, Any]
    weights: str

    @property
    def repeated(self) -> dict[str, Any]:
        """The result, with the costs of finding it: none."""
        return self.result | _NOTHING_PLAYED


def key_of(run: Path, request: EvaluationRequest) -> EvaluationKey:
    """Identify an evaluation of a run.

    Raises:
        MissingError: If the run has no such checkpoint.
    """
    folder = run / "checkpoints"
    path = checkpoint.find(folder, request.which)
    return EvaluationKey(
        checkpoint=hashing.checksum(path.read_bytes()),
        versions=versions(),
        **msgspec.structs.asdict(request),
    )


def find(run: Path, results: Path, key: EvaluationKey) -> Recorded | None:
    """Find a finished evaluation; None if there is none.

    Raises:
        DamagedError: If its file is damaged.
    """
    path = _path(results, key)
    if not path.exists() or not (results / TABLE).exists():
        return None
    try:
        recorded = records.read_json(path.read_bytes(), Recorded, str(path))
    except DamagedError as error:
        raise DamagedError(
            error.kind, f"{path} is damaged. Remove it, or play the games again with --again."
        ) from None
    if recorded.weights and not _weights(results):
        return None
    result = rename_results(recorded.result)
    length = {"trained": result["trained"], "unit": read_config(run).unit}
    return msgspec.structs.replace(recorded, result=length | result)


def keep(run: Path, results: Path, key: EvaluationKey, finished: Evaluation) -> None:
    """Record a finished evaluation.

    Nothing is recorded if a user's own fusion played, or if a run in training has saved another
    network since `key_of` identified the evaluation.

    Raises:
        StorageError: If there is no room, or the folder refuses access.
    """
    own_fusion = user_code.is_name(read_config(run).network.fusion.name)
    if own_fusion or not key.checkpoint.startswith(finished.player.digest):
        return
    recorded = Recorded(
        key, finished.summary(), _weights(results) if finished.player.weighs else ""
    )
    atomic_files.replace(_path(results, key), msgspec.json.format(msgspec.json.encode(recorded)))


def has_its_weights(results: Path, recorded: Recorded) -> bool:
    """Whether the fusion's weights in the folder are those of this evaluation, if it has any."""
    return not recorded.weights or recorded.weights == _weights(results)


def _weights(results: Path) -> str:
    path = results / attention_log.FILE
    return hashing.checksum(path.read_bytes()) if path.exists() else ""


def _path(results: Path, key: EvaluationKey) -> Path:
    return results / FOLDER / f"{hashing.identity(key)[:24]}.json"
