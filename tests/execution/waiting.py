"""A handler of workers whose jobs wait, or work, for so many seconds."""

import time


def warm() -> None:
    pass


def handle(job: dict) -> dict:
    if 'work' in job:
        end = time.monotonic() + job['work']
        while time.monotonic() < end:
            pass
        return {}
    time.sleep(job['wait'])
    return {'waited': job['wait']}


def present(report: dict) -> dict:
    return report
