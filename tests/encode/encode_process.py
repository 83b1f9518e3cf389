"""Encode a store and print a line per event: `encode_process.py STORE SCHEDULER MODEL`.

`test_processes.py` kills it, interrupts it, or starts two at once.
"""

import sys

from wsa.encode.jobs.encoding import Encoding
from wsa.encode.jobs.events import Event, Planned, SegmentDone
from wsa.encode.jobs.run import encode
from wsa.encode.models.registry import parse_request
from wsa.store.common.errors import WsaError
from wsa.store.objects.root import open_store


def print_event(event: Event) -> None:
    if isinstance(event, Planned | SegmentDone):
        print(type(event).__name__, event.passes, flush=True)


def main(url: str, scheduler: str, model: str) -> int:
    workers = 2 if scheduler == "local" else 0
    request = parse_request(model, {}, "pooled")
    try:
        report = encode(
            open_store(url),
            # A busy machine may find another engine faster.
            Encoding([request], device="cpu", engine="torch"),
            scheduler=scheduler,
            workers=workers,
            listen=print_event,
        )
    except WsaError as error:
        print(error.kind, error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    print("report", report.passes, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
