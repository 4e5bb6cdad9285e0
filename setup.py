"""Packages, the compiled module and the index page; everything else is in pyproject.toml.

`runtime/` and `engines/` lie at the top of the repository and are installed as `sdexport.runtime`
and `sdexport.engines`. The links sdexport/runtime and sdexport/engines are for tools that run from
a checkout; an installation uses `package_dir` alone, so it works where links are not supported.
"""

import re
import sysconfig
import tomllib
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
PACKAGE_DIR = {
    "sdexport": "sdexport",
    "sdexport.runtime": "runtime",
    "sdexport.engines": "engines",
}
STABLE_ABI = "cp311"  # the version in Py_LIMITED_API of _noise.c
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))  # has no stable ABI yet


def packages() -> list[str]:
    """Every package, without following the links in sdexport/."""
    linked = ("runtime", "runtime.*", "engines", "engines.*")
    found = list(PACKAGE_DIR)
    for name, folder in PACKAGE_DIR.items():
        exclude = linked if name == "sdexport" else ()
        found += [f"{name}.{sub}" for sub in find_packages(folder, exclude=exclude)]
    return found


def index_page() -> str:
    """README.md with links and images that work outside of the repository."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    home = project["urls"]["Homepage"]
    version = re.search('__version__ = "([^"]+)"', (ROOT / "runtime/version.py").read_text())
    ref = "main" if version is None or "dev" in version[1] else f"v{version[1]}"
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    path = r"(?![a-z]+:|#|/)([^)\s\"]+)"
    text = re.sub(r"(!\[[^\]]*\]\(|\bsrc=\")" + path, rf"\1{home}/raw/{ref}/\2", text)
    return re.sub(r"(\]\(|\bhref=\")" + path, rf"\1{home}/blob/{ref}/\2", text)


class BuildExtension(build_ext):
    """Compiler flags that keep every operation's rounding: the noise is equal bit for bit."""

    def build_extensions(self) -> None:
        unix = ["-O3", "-fno-math-errno", "-ffp-contract=off"]
        for extension in self.extensions:
            extension.extra_compile_args = (
                ["/O2", "/fp:precise"] if self.compiler.compiler_type == "msvc" else unix
            )
        super().build_extensions()


class Wheel(bdist_wheel):
    """A wheel for the stable ABI, or for any Python where the module did not compile."""

    def get_tag(self) -> tuple[str, str, str]:
        build = self.get_finalized_command("build_ext")
        modules = [build.get_ext_fullpath(module.name) for module in build.extensions]
        self.root_is_pure = not all(Path(module).exists() for module in modules)
        return super().get_tag()


setup(
    packages=packages(),
    package_dir=PACKAGE_DIR,
    long_description=index_page(),
    long_description_content_type="text/markdown",
    ext_modules=[
        Extension(
            "sdexport.runtime.noise._noise",
            sources=["runtime/noise/_noise.c"],
            depends=["setup.py"],
            py_limited_api=True,
            optional=True,  # left out, with a warning, where it does not compile
        )
    ],
    cmdclass={"build_ext": BuildExtension, "bdist_wheel": Wheel},
    options={} if FREE_THREADED else {"bdist_wheel": {"py_limited_api": STABLE_ABI}},
)
