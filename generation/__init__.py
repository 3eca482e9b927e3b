"""Writing instances from principles: tasks, flows, engines, curation and the dataset. Imports no ray, torch, vllm or deepspeed."""
