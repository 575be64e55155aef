"""The parts of benchmarks/gpu.py, one to a file.

A part is a module with COLUMNS (of its table), KEY (the columns that name a task), LIMIT (seconds that one task may take), JOBS (workers
at a time), plan(options) -> the keys of its tasks, run(key, options) -> the rows of one, and optionally more(row) -> the keys of tasks
that a row asks for. plan needs no GPU; run is called in a worker process.
"""
