"""Train the demo model, follow its events, evaluate it and export it, from Python alone.

    python examples/train_and_export.py [EPOCHS]

The cells (# %%) also run one by one in VS Code, PyCharm, or as a notebook (`jupytext --to ipynb`).
Everything is written to the working directory: runs/ and example-model/.
"""

# %%
import sys

import dpo_cli as dpo

epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 8

# %% [markdown]
# Check the profile first. Each finding says what to change before training starts.

# %%
diagnosis = dpo.check("demo", {"train.epochs": epochs})
for finding in diagnosis.findings:
    if finding.level != "ok":
        print(f"{finding.level}: {finding.message}")

# %% [markdown]
# Start the run in the background. `dpo watch` in a terminal shows the same run.

# %%
run = dpo.train("demo", {"train.epochs": epochs}, name="example", wait=False)

# %% [markdown]
# Follow its events. In a notebook, `run` alone in a cell shows the panel.

# %%
for event in run.events(follow=True):
    if isinstance(event, dpo.StepDone) and event.optimizer_step % 20 == 0:
        print(f"step {event.optimizer_step}: loss {event.metrics['loss']:.4f}")
    elif isinstance(event, dpo.Evaluated):
        print(f"held-out loss {event.metrics['loss']:.4f}")
print(f"{run.name}: {run.wait()}")

# %% [markdown]
# Evaluate on the held-out pairs. The reference is the model before training.

# %%
metrics = run.evaluate().models[0].groups["all"]
print(f"evaluated on {metrics['pairs']:.0f} pairs: accuracy {metrics['rewards/accuracies']:.2f}")

# %% [markdown]
# Export a directory that plain transformers loads.

# %%
report = run.export("example-model", format="hf", force=True)
print(f"exported {report.path} in {report.dtype}")
print(f"try it: {report.try_command}")
