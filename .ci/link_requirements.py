"""What a package in an environment requires, and nothing else, linked into it from the environment that runs this.

`.venv/bin/python .ci/link_requirements.py torch-dropblock .venv-wheel`: torch and what it requires are several
gigabytes, and a second copy is more than a small disk has room for.
"""

import sys
import sysconfig
from importlib.metadata import distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement

package, environment = sys.argv[1:]
packages = Path(sysconfig.get_path("purelib", vars={"base": environment}))
(needing,) = distributions(name=package, path=[str(packages)])

todo = [(needing, "")]
seen = set()
while todo:
    needing, extra = todo.pop()
    for requirement in map(Requirement, needing.requires or ()):
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        needed = distribution(requirement.name)
        for top in {file.parts[0] for file in needed.files or ()} - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(str(needed.locate_file(top)))
        for extra_needed in ("", *requirement.extras):
            if (requirement.name, extra_needed) not in seen:
                seen.add((requirement.name, extra_needed))
                todo.append((needed, extra_needed))
