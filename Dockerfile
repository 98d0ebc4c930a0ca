# CANN, torch, torch_npu and this project, for a host that has Ascend's driver. Not built by the tests,
# which have no such base image; its tags: CANN, chip, system, Python.
#
#   docker build --tag srcnn --build-arg PIP_EXTRA_INDEX_URL="PyTorch's index of CPU builds" .
#   docker run --rm --device /dev/davinci0 --device /dev/davinci_manager --device /dev/devmm_svm \
#     --device /dev/hisi_hdc -v /usr/local/Ascend/driver:/usr/local/Ascend/driver:ro srcnn
#
# CHIP is 910b (A2) or a3 (A3). 910 (910A): with torch and torch_npu as requirements-npu.txt says.
ARG CHIP=910b
FROM quay.io/ascend/cann:8.5.2-${CHIP}-ubuntu22.04-py3.11

# Both files in one call, so that numpy stays what CANN takes and torch what torch_npu takes.
ARG PIP_EXTRA_INDEX_URL
WORKDIR /srcnn
COPY requirements.txt requirements-npu.txt ./
RUN pip install --no-cache-dir -r requirements.txt -r requirements-npu.txt
COPY . .
CMD ["bash", "-c", ". test/env_npu.sh && python3 train.py --check"]
