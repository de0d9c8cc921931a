"""What the package costs: `python -m benchmarks.encoding | render | step | scaling`, each a table and a JSON file.

Run from the repository; not part of the wheel. Each takes --repeats, --threads, --device, --clock, --quick and --out.
"""

import jointdreamer  # noqa: F401  # before torch: threads wait as they do in a run
