"""How much a package is trusted: whose signature it needs, and what its graphs may hold."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sdexport.engines.errors import EngineError, InvalidArgumentError, PackageError
from sdexport.engines.messages import shown
from sdexport.engines.onnx_file.graph_survey import GraphSurvey, survey
from sdexport.engines.onnx_file.operators import unknown_parts
from sdexport.engines.printable_text import escaped
from sdexport.runtime.packages.graph_surveys import GraphSurveys
from sdexport.runtime.packages.manifest import MANIFEST, Manifest
from sdexport.runtime.packages.minisign import PublicKey, Signature
from sdexport.runtime.packages.signature import TrustedKey, check_signature, public_key

_log = logging.getLogger(__name__)
WARN, SIGNED = "warn", "signed"
POLICIES = (WARN, SIGNED)
"""What happens to graphs with unknown operators in a package that no trusted key signed: a
warning, or an error."""
_LISTED = 8
"""Operators and problems that a message names."""


@dataclass(frozen=True)
class Trust:
    """What is required of a package; made by `checked`."""

    key: PublicKey | None
    policy: str

    @classmethod
    def checked(cls, policy: str, key: TrustedKey | None, *, verify: bool) -> Self:
        """Check the arguments of `Package.load`.

        Raises: InvalidArgumentError: an unknown policy, no public key, or a key without `verify`.
          FileNotFoundError: no such key file.
        """
        if policy not in POLICIES:
            raise InvalidArgumentError(
                f"trust must be one of {', '.join(POLICIES)}, got {shown(policy)}"
            )
        if key is not None and not verify:
            raise InvalidArgumentError(
                "trusted_key needs verify=True: a signature covers the hashes, and these the files"
            )
        return cls(None if key is None else public_key(key), policy)

    @property
    def built_engines(self) -> bool:
        """Whether engines in the package's own folder may be used: no signature covers them."""
        return self.key is None and self.policy == WARN

    def signature(self, folder: Path, manifest: Manifest | None) -> Signature | None:
        """The signature of a package, verified; None if none is required.

        Args:
          manifest: None for a folder without one, which cannot be signed.
        Raises: PackageError, MissingDependencyError: see `check_signature`.
        """
        if self.key is None:
            return None
        if manifest is None:
            raise PackageError(f"{folder} is not signed: it has no {MANIFEST}")
        return check_signature(folder, manifest, self.key)

    def check_graphs(self, surveys: GraphSurveys, graphs: Iterable[str]) -> None:
        """Check the graphs of a package before a library opens them.

        Raises: PackageError: a graph asks for sizes that no model needs, or its weights are not
          where it says; or it holds unknown operators, the policy is "signed", and no key signed
          the package.
        """
        for name in graphs:
            what, found = f"{surveys.folder}: {name}", surveys.of(name)
            problems = [*found.problems, *_misplaced(found, surveys.path(name))]
            if problems:
                raise PackageError(f"{what}: {'; '.join(problems[:_LISTED])}")
            if self.key is None:
                check_operators(what, found, self.policy)


UNTRUSTED = Trust(None, WARN)
"""Nothing is required."""


def check_operators(what: str, found: GraphSurvey, policy: str) -> None:
    """Warn of unknown operators, or reject them.

    Raises: PackageError: there are some, and the policy is "signed".
    """
    unknown = unknown_parts(found)
    if not unknown:
        return
    listed = ", ".join(escaped(part)[:80] for part in unknown[:_LISTED])
    more = f" and {len(unknown) - _LISTED} more" if len(unknown) > _LISTED else ""
    message = f"{what}: the graph holds what no export writes: {listed}{more}"
    if policy == SIGNED:
        raise PackageError(f"{message}; it must be signed with a trusted key")
    _log.warning("%s; use it only if you trust where it is from", message)


def check_engine(path: Path) -> None:
    """Check a prepared graph in a package's own folder: warn of unknown operators.

    Raises: EngineError: it is no well-formed ONNX file, asks for sizes that no model needs, or its
      weights are not where it says, or in another folder.
    """
    try:
        found = survey(path)
    except ValueError as error:  # a library may read it all the same
        raise EngineError(f"{path.parent}: {error}") from error
    problems = [*found.problems, *_misplaced(found, path)]
    outside = [name for name in sorted(found.locations) if Path(name).name != name or "\\" in name]
    problems += [f"weights in another folder, {shown(name)}" for name in outside]
    if problems:
        raise EngineError(f"{path}: {'; '.join(problems[:_LISTED])}")
    check_operators(str(path), found, WARN)


def _misplaced(found: GraphSurvey, path: Path) -> list[str]:
    """What is wrong with the places of a graph's weights, in words."""
    problems = []
    sizes: dict[str, int] = {}
    for location in sorted(found.locations):
        if escaped(location) != location:
            return [f"weights in a file of the name {shown(location)}"]
        file = path.parent / location
        sizes[location] = file.stat().st_size if file.is_file() else 0
    for tensor in found.external:
        end = tensor.offset + tensor.size
        if end > sizes.get(tensor.location, 0):
            problems.append(
                f"tensor {shown(tensor.name)} ends at byte {end} of {shown(tensor.location)}, "
                f"which has {sizes.get(tensor.location, 0)}"
            )
    return problems
