"""A job's file before it is queued: is it one, how long will it take, can a follower run it?

Owns what a queue asks of a job beyond what `bench run` does: a follower has no files of the one who
submits.
"""

from pathlib import PurePath

from loadtest.driver.job_file import JobError, JobFile, own_file, parse


def checked(text: str, name: str) -> JobFile:
    """`name` is what errors call the file. Raises JobError, also for a path that only the
    submitter's folder makes sense of.
    """
    job = parse(text, name)
    for case in job.cases:
        paths = [(f"model {model.name!r}", model.path) for model in case.job.models]
        paths += [(f"workload[{i}]", own_file(entry)) for i, entry in enumerate(case.job.workload)]
        for what, path in paths:
            if path is not None and not PurePath(path).is_absolute():
                raise JobError(
                    f"{name}: {what} has the path {path}, relative to this file: files are not "
                    "sent to followers. Give a path that they have from the root on, or a "
                    "registered or canonical model, or a trace of loadtest/data"
                )
    return job
