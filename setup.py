"""Packages and the one compiled module; everything else is in pyproject.toml.

`runtime/` and `engines/` lie at the top of the repository and are installed as `sdexport.runtime`
and `sdexport.engines`. The links sdexport/runtime and sdexport/engines are for tools that run from
a checkout; an installation goes by `package_dir` alone, so it works where links are not supported.
"""

from setuptools import Extension, find_packages, setup

PACKAGE_DIR = {
    "sdexport": "sdexport",
    "sdexport.runtime": "runtime",
    "sdexport.engines": "engines",
}


def packages() -> list[str]:
    """Every package, without following the links in sdexport/."""
    linked = ("runtime", "runtime.*", "engines", "engines.*")
    found = list(PACKAGE_DIR)
    for name, folder in PACKAGE_DIR.items():
        exclude = linked if name == "sdexport" else ()
        found += [f"{name}.{sub}" for sub in find_packages(folder, exclude=exclude)]
    return found


setup(
    packages=packages(),
    package_dir=PACKAGE_DIR,
    ext_modules=[
        Extension(
            "sdexport.runtime.noise._noise",
            sources=["runtime/noise/_noise.c"],
            depends=["setup.py"],
            extra_compile_args=["-O3", "-fno-math-errno", "-ffp-contract=off"],
            py_limited_api=True,
            optional=True,  # left out, with a warning, where it does not compile
        )
    ],
)
