"""A job's file before it is queued: is it one, how long will it take, can a follower run it?

Owns what a queue asks of a job beyond what `bench run` does: a follower has no files of the one who
submits.
"""

from pathlib import PurePath

from loadtest.driver.job_file import JobError, JobFile, parse


def checked(text: str, name: str) -> JobFile:
    """`name` is what errors call the file. Raises JobError, also for a model's path that only the
    submitter's folder makes sense of.
    """
    job = parse(text, name)
    for case in job.cases:
        for model in case.job.models:
            if model.path is not None and not PurePath(model.path).is_absolute():
                raise JobError(
                    f"{name}: model {model.name!r} has the path {model.path}, relative to this "
                    "file: model files are not sent to followers. Give a path that they have "
                    "from the root on, or a registered or canonical model"
                )
    return job
