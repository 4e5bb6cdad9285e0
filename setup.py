"""The one compiled module; the rest is in pyproject.toml, whose way to name one may yet change."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "runtime._noise",
            sources=["runtime/_noise.c"],
            depends=["setup.py"],
            extra_compile_args=["-O3", "-fno-math-errno", "-ffp-contract=off"],
            py_limited_api=True,
            optional=True,  # left out, with a warning, where it does not compile
        )
    ]
)
