#!/bin/bash
set -e
MODEL=Qwen/Qwen2.5-7B-Instruct
# 2 x 24 GiB
CUDA_VISIBLE_DEVICES=0,1 \
NPROC_PER_NODE=2 \
swift rlhf \
    --rlhf_type dpo \
    --model $MODEL \
    --train_type full \
    --dataset hjh0119/shareAI-Llama3-DPO-zh-en-emoji#1000 \
    --split_dataset_ratio 0.01 \
    --torch_dtype bfloat16 \
    --num_train_epochs 1 \
    --per_device_train_batch_size 1 \
    --per_device_eval_batch_size 1 \
    --learning_rate 1e-5 \
    --gradient_accumulation_steps 8 \
    --eval_steps 100 \
    --save_steps 100 \
    --save_total_limit 2 \
    --logging_steps 5 \
    --max_length 2048 \
    --rpo_alpha 0.1 \
    --output_dir output \
    --warmup_steps 5 \
    --dataloader_num_workers 4 \
    --dataset_num_proc 4 \
    --deepspeed zero2
