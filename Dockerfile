# docker build -t segmentation . ; docker run --gpus all --shm-size 8g -v $PWD/data:/code/data segmentation evaluate.py --help
# All packages are wheels that need no system packages. COMPILE = True needs g++: apt-get install g++.
FROM python:3.11-slim
WORKDIR /code
COPY requirements.lock .
RUN pip install --no-cache-dir -r requirements.lock
COPY . .
ENTRYPOINT ["python"]
