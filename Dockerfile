# docker build --tag nnunet .
# docker run --rm --gpus all --ipc host --user "$(id -u):$(id -g)" --volume "$PWD/data:/data" \
#   --volume "$PWD/results:/results" -it nnunet
#
# docker build --tag nnunet-serve --target serve .
# docker run --rm --gpus all --volume "$PWD/model.zip:/model.zip:ro" --volume "$PWD/token:/token:ro" \
#   --publish 127.0.0.1:8000:8000 nnunet-serve /model.zip --host 0.0.0.0 --token_file /token

# The image brings PyTorch 2.12, CUDA 13.2 and cuDNN, built for each other by NVIDIA.
FROM nvcr.io/nvidia/pytorch:26.05-py3 AS program

WORKDIR /workspace/nnunet

# Requirements come before the code, so that a change of the code does not install everything again.
COPY requirements.txt requirements-extras.txt ./

# NVIDIA's torch and numpy stay: a torch from the package index would replace the build for these GPUs. Their versions
# become the only constraint; the image's own (/etc/pip/constraint.txt) would refuse the versions we test with.
# DALI is taken for CUDA 13, the image's CUDA; requirements.txt names the one for CUDA 12.
RUN python -c "import numpy, torch; print(f'numpy=={numpy.__version__}\ntorch=={torch.__version__}')" > /tmp/kept.txt \
    && sed -e '/^torch==/d' -e '/^numpy==/d' -e 's/nvidia-dali-cuda120/nvidia-dali-cuda130/' requirements.txt \
       > /tmp/requirements.txt \
    && PIP_CONSTRAINT=/tmp/kept.txt pip install --no-cache-dir --requirement /tmp/requirements.txt \
       --requirement requirements-extras.txt \
    && rm /tmp/kept.txt /tmp/requirements.txt

# Not on the package index; pinned, because its repository has no release with appending to a log.
RUN pip install --no-cache-dir git+https://github.com/NVIDIA/dllogger@07ec82a209597d1de058df0181f68b8e65049ed6

# With .git, so that run.json can name the commit; git wants to be told that the folder of another user is trusted.
COPY . .
RUN git config --system --add safe.directory /workspace/nnunet

# The command `nnunet`, from any folder; what it needs is installed above.
RUN PIP_CONSTRAINT= pip install --no-cache-dir --no-deps --editable .

# Where a container started with --user has no home, matplotlib would complain on every run.
ENV MPLCONFIGDIR=/tmp/matplotlib

# The commands read and write here by default when these folders exist.
VOLUME ["/data", "/results"]

# The service alone: flags of `nnunet serve` follow the name of the image. Nothing in it needs to be root; the port is
# asked at 8000, whichever flags follow.
FROM program AS serve
RUN getent passwd 1000 || useradd --uid 1000 --user-group --no-create-home nnunet
USER 1000:1000
ENV HOME=/tmp
EXPOSE 8000
HEALTHCHECK --interval=30s --start-period=120s --timeout=10s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/ready', timeout=5)"]
ENTRYPOINT ["nnunet", "serve"]

# Without --target: all commands.
FROM program
