"""A handler of workers whose jobs wait, or work, for so many seconds, or keep so many megabytes."""

import time

_kept = []


def warm() -> None:
    pass


def handle(job: dict) -> dict:
    if 'work' in job:
        end = time.monotonic() + job['work']
        while time.monotonic() < end:
            pass
        return {}
    if 'keep' in job:
        _kept.append(bytearray(job['keep'] * 2**20))
        return {'kept': len(_kept)}
    time.sleep(job['wait'])
    return {'waited': job['wait']}


def present(report: dict) -> dict:
    return report
