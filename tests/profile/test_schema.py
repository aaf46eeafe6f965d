from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dpo_cli.errors import UsageError
from dpo_cli.profile.json_schema import json_schema
from dpo_cli.profile.launch import Launch
from dpo_cli.profile.losses import LOSSES
from dpo_cli.profile.objective import Dpo
from dpo_cli.profile.schema import KEYS, TABLES, Eval, Profile
from dpo_cli.profile.table import Effect, Kind
from dpo_cli.profile.train import Train

SNAPSHOT = Path(__file__).parent / "schema.snapshot.json"
DEFAULTS = Profile.model_validate({"model": {"tokenizer": "m"}, "data": {"data_path": "d"}})


def build(key: str, value: object) -> Profile:
    """Build a profile in which `key` has `value`."""
    tables: dict[str, dict[str, object]] = {"model": {"tokenizer": "m"}, "data": {"data_path": "d"}}
    table, field = key.split(".")
    tables.setdefault(table, {})[field] = value
    return Profile.model_validate(tables)


def value_of(profile: Profile, key: str) -> object:
    table, field = key.split(".")
    return getattr(getattr(profile, table), field)


class TestKeys:
    def test_defaults_are_those_of_minimind(self) -> None:
        expected: dict[str, object] = {
            "model.weights_dtype": "float32",
            "model.dropout": 0.0,
            "data.format": "auto",
            "data.max_seq_len": 1024,
            "data.shuffle": False,
            "data.empty_think_ratio": 0.2,
            "data.num_workers": 0,
            "dpo.loss": "sigmoid",
            "dpo.beta": 0.1,
            "dpo.reduction": "mean",
            "dpo.f_divergence_type": "reverse_kl",
            "dpo.f_alpha_divergence_coef": 0.5,
            "dpo.use_weighting": False,
            "dpo.discopop_tau": 0.05,
            "dpo.simpo_gamma": 0.5,
            "dpo.dpop_lambda": 50.0,
            "train.epochs": 2,
            "train.batch_size": 4,
            "train.learning_rate": 1e-8,
            "train.schedule": "minimind2",
            "train.warmup_iters": 0,
            "train.warmup_ratio": 0.0,
            "train.min_lr_ratio": 0.0,
            "train.optimizer": "adamw",
            "train.adam_betas": [0.9, 0.999],
            "train.adam_epsilon": 1e-8,
            "train.weight_decay": 0.01,
            "train.decay_norms_and_biases": True,
            "train.kahan_summation": False,
            "train.grad_clip": 1.0,
            "train.nan_policy": "stop",
            "train.seed": 1337,
            "train.device": "auto",
            "train.dtype": "auto",
            "train.tf32": False,
            "train.activation_checkpointing": False,
            "train.compile": False,
            "train.layout": "packed",
            "train.aux_loss_tokens": "real",
            "train.deterministic": False,
            "train.log_interval": 100,
            "train.save_interval": 100,
            "train.save_min_seconds": 60.0,
            "lora.dropout": 0.0,
            "lora.target_modules": "all-linear",
            "lora.use_dora": False,
            "lora.use_rslora": False,
            "lora.init_lora_weights": "kaiming",
            "lora.continue_adapter": False,
            "eval.fraction": 0.0,
            "eval.interval": 0,
            "eval.keep_best": False,
            "eval.num_samples": 0,
            "eval.patience": 0,
            "export.prefix": "rlhf",
            "export.dtype": "auto",
            "launch.nproc_per_node": 1,
            "launch.strategy": "replicate",
            "launch.nnodes": 1,
            "launch.node_rank": 0,
            "launch.rdzv_backend": "c10d",
            "launch.max_restarts": 0,
            "launch.timeout_seconds": 600.0,
            "track.use_wandb": False,
            "track.wandb_project": "MiniMind-DPO",
            "track.use_swanlab": False,
            "track.use_tensorboard": False,
            "track.use_trackio": False,
            "track.use_mlflow": False,
            "track.send_text": False,
        }
        defaults = {key: value_of(DEFAULTS, key) for key in KEYS}
        required_keys = {"model.tokenizer", "data.data_path"}
        assert {
            key: value
            for key, value in defaults.items()
            if value is not None and key not in required_keys
        } == expected

    @pytest.mark.parametrize("key", KEYS)
    def test_every_key_has_a_description(self, key: str) -> None:
        description = KEYS[key].description
        assert len(description) > 20
        assert description.endswith(".")
        assert "\n" not in description
        assert "  " not in description

    @pytest.mark.parametrize("key", KEYS)
    def test_every_example_is_a_valid_value(self, key: str) -> None:
        assert KEYS[key].examples
        for example in KEYS[key].examples:
            assert example is not None
            build(key, example)

    def test_effects_on_a_resume(self) -> None:
        by_effect = {
            effect: {key for key in KEYS if KEYS[key].effect is effect} for effect in Effect
        }
        assert by_effect[Effect.NONE] == {
            "model.out_dir",
            "model.weights",
            "model.reference",
            "model.adapter",
            "model.tokenizer",
            "data.data_path",
            "data.num_workers",
            "train.activation_checkpointing",
            "train.threads",
            "train.log_interval",
            "train.save_interval",
            "train.save_min_seconds",
            "export.prefix",
            "export.dtype",
            "launch.nproc_per_node",
            "launch.strategy",
            "launch.nnodes",
            "launch.node_rank",
            "launch.rdzv_endpoint",
            "launch.rdzv_backend",
            "launch.max_restarts",
            "launch.timeout_seconds",
            "eval.keep_best",
            "eval.num_samples",
            *(key for key in KEYS if key.startswith("track.")),
            "eval.patience",
        }
        assert by_effect[Effect.POSITION] == {
            "model.hidden_size",
            "model.num_hidden_layers",
            "model.use_moe",
            "model.num_attention_heads",
            "model.num_key_value_heads",
            "model.num_experts_per_tok",
            "model.norm_topk_prob",
            "model.rope_theta",
            "model.rms_norm_eps",
            "model.quantization",
            "model.weights_dtype",
            "data.mixture_weights",
            "data.format",
            "data.columns",
            "data.max_seq_len",
            "data.shuffle",
            "data.empty_think_ratio",
            "data.scored_turns",
            "data.truncation",
            "data.max_prompt_len",
            "train.batch_size",
            "train.accumulation_steps",
            "train.global_batch_size",
            "train.seed",
            "train.optimizer",
            "eval.fraction",
            *(key for key in KEYS if key.startswith("lora.") and key != "lora.dropout"),
        }
        assert by_effect[Effect.MATHEMATICS] == {
            "model.dropout",
            "lora.dropout",
            *(key for key in KEYS if key.startswith("dpo.")),
            "train.epochs",
            "train.learning_rate",
            "train.schedule",
            "train.warmup_iters",
            "train.warmup_ratio",
            "train.min_lr_ratio",
            "train.decay_iters",
            "train.decay_ratio",
            "train.adam_betas",
            "train.adam_epsilon",
            "train.weight_decay",
            "train.decay_norms_and_biases",
            "train.kahan_summation",
            "train.grad_clip",
            "train.nan_policy",
            "train.device",
            "train.dtype",
            "train.tf32",
            "train.compile",
            "train.router_aux_loss_coef",
            "train.layout",
            "train.max_tokens_per_forward",
            "train.aux_loss_tokens",
            "train.deterministic",
            "eval.path",
            "eval.interval",
        }

    def test_paths_are_marked(self) -> None:
        assert {key for key in KEYS if KEYS[key].kind is Kind.PATH} == {
            "model.out_dir",
            "model.adapter",
            "model.tokenizer",
        }
        assert {key for key in KEYS if KEYS[key].kind is Kind.DATA} == {
            "data.data_path",
            "eval.path",
        }
        assert {key for key in KEYS if KEYS[key].kind is Kind.WEIGHTS} == {
            "model.weights",
            "model.reference",
        }


class TestStrictness:
    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("model.use_moe", "False"),
            ("model.use_moe", 0),
            ("data.shuffle", 1),
            ("train.epochs", True),
            ("train.epochs", 2.0),
            ("train.epochs", "2"),
            ("train.learning_rate", True),
            ("train.learning_rate", "1e-8"),
            ("train.learning_rate", float("nan")),
            ("train.grad_clip", float("inf")),
            ("data.data_path", 3),
            ("data.data_path", []),
            ("data.data_path", ["a", 3]),
            ("model.weights", 512),
        ],
    )
    def test_wrong_types_are_rejected(self, key: str, value: object) -> None:
        with pytest.raises(ValidationError):
            build(key, value)

    def test_an_integer_is_accepted_for_a_float(self) -> None:
        beta = build("dpo.beta", 1).dpo.beta
        assert beta == 1.0
        assert isinstance(beta, float)

    @pytest.mark.parametrize(
        ("key", "bad", "good"),
        [
            ("model.weights", "", "run:first"),
            ("model.hidden_size", 0, 1),
            ("model.rope_theta", 0.0, 1e4),
            ("model.quantization", "fp4", "nf4"),
            ("model.dropout", 1.0, 0.99),
            ("model.dropout", -0.1, 0.0),
            ("data.mixture_weights", [1.0, 1.0], [0.5]),
            ("data.mixture_weights", [-1.0], [0.0]),
            ("data.mixture_weights", [100.5], [100.0]),
            ("data.format", "hh", "plain"),
            ("data.columns", {"ask": "prompt"}, {"prompt": "ask"}),
            ("data.max_seq_len", 1, 2),
            ("data.empty_think_ratio", 1.01, 1.0),
            ("data.empty_think_ratio", -0.01, 0.0),
            ("data.scored_turns", "first", "last"),
            ("data.truncation", "start", "prompt_start"),
            ("data.max_prompt_len", 0, 1),
            ("data.num_workers", -1, 0),
            ("dpo.beta", 0.0, 1e-9),
            ("dpo.reduction", "max", "sum"),
            ("dpo.loss", "logistic", "ipo"),
            ("dpo.loss", ["sigmoid", 3], ["sigmoid"]),
            ("dpo.loss_weights", [0.0], [1.0]),
            ("dpo.label_smoothing", 0.5, 0.49),
            ("dpo.label_smoothing", -0.1, 0.0),
            ("dpo.f_divergence_type", "kl", "forward_kl"),
            ("dpo.ld_alpha", 1.1, 1.0),
            ("dpo.ld_alpha", -0.1, 0.0),
            ("dpo.discopop_tau", 0.0, 1.0),
            ("dpo.simpo_gamma", -1.0, 0.0),
            ("dpo.dpop_lambda", -1.0, 0.0),
            ("train.epochs", 0, 1),
            ("train.batch_size", 0, 1),
            ("train.accumulation_steps", 0, 1),
            ("train.learning_rate", 0.0, 1e-9),
            ("train.learning_rate", -1e-8, 1e-8),
            ("train.schedule", "step", "minimind3"),
            ("train.warmup_iters", -1, 0),
            ("train.warmup_ratio", 1.0, 0.9),
            ("train.warmup_ratio", -0.1, 0.0),
            ("train.min_lr_ratio", -0.1, 0.0),
            ("train.optimizer", "adam", "muon"),
            ("train.adam_betas", [0.9, 1.0], [0.0, 0.999]),
            ("train.adam_betas", [0.9], [0.9, 0.95]),
            ("train.adam_epsilon", 0.0, 1e-6),
            ("train.weight_decay", -0.1, 0.0),
            ("train.grad_clip", 0.0, 0.1),
            ("train.seed", -1, 0),
            ("train.seed", 2**32, 2**32 - 1),
            ("train.device", "gpu", "cuda"),
            ("train.device", "cuda:", "cuda:11"),
            ("train.device", "cuda:0\n", "cpu"),
            ("train.dtype", "bf16", "bfloat16"),
            ("train.router_aux_loss_coef", -1.0, 0.0),
            ("train.log_interval", 0, 1),
            ("train.save_interval", 0, 1),
            ("train.save_min_seconds", -1.0, 0),
            ("eval.fraction", 1.0, 0.5),
            ("eval.interval", -1, 0),
            ("export.prefix", "a/b", "dpo"),
            ("export.prefix", "", "rlhf"),
            ("export.dtype", "float8", "float32"),
            ("launch.nproc_per_node", 0, 1),
            ("launch.nproc_per_node", True, 2),
            ("launch.nproc_per_node", "all", "auto"),
            ("launch.strategy", "fsdp", "shard"),
            ("launch.nnodes", 0, 1),
            ("launch.node_rank", -1, 0),
            ("launch.node_rank", 1, 0),
            ("launch.rdzv_endpoint", "node0", "node0:29400"),
            ("launch.rdzv_endpoint", "http://node0:1", "[::1]:29400"),
            ("launch.rdzv_backend", "etcd", "etcd-v2"),
            ("launch.max_restarts", -1, 0),
            ("launch.timeout_seconds", 0.0, 1),
            ("track.wandb_project", "a/b", "MiniMind-DPO"),
            ("track.wandb_project", "", "我的项目"),
            ("track.use_wandb", "true", True),
        ],
    )
    def test_limits(self, key: str, bad: object, good: object) -> None:
        assert value_of(build(key, good), key) == good
        with pytest.raises(ValidationError):
            build(key, bad)

    def test_unknown_keys_are_rejected(self) -> None:
        with pytest.raises(ValidationError, match="extra_forbidden"):
            build("train.lr", 1e-8)

    def test_a_profile_cannot_be_changed(self) -> None:
        with pytest.raises(ValidationError, match="frozen"):
            DEFAULTS.dpo.beta = 5.0


class TestAgreement:
    """Tests of keys that are valid alone but not together."""

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (
                {"warmup_iters": 3, "warmup_ratio": 0.1},
                "set only one of train.warmup_ratio and train.warmup_iters",
            ),
            (
                {"schedule": "wsd", "decay_iters": 3, "decay_ratio": 0.1},
                "set only one of train.decay_ratio and train.decay_iters",
            ),
            ({"schedule": "constant", "min_lr_ratio": 0.1}, "or remove train.min_lr_ratio"),
            ({"min_lr_ratio": 0.1}, 'no effect on train.schedule = "minimind2"'),
            *(
                (
                    {"optimizer": optimizer, "kahan_summation": True},
                    f'train.optimizer = "adamw" only, not with "{optimizer}"',
                )
                for optimizer in ("adamw8bit", "adafactor", "sgd", "muon")
            ),
        ],
    )
    def test_optimization_that_excludes_itself(
        self, values: dict[str, object], message: str
    ) -> None:
        with pytest.raises(ValidationError, match=re.escape(message)):
            Train.model_validate(values)

    def test_aux_loss_over_padding_needs_the_padded_layout(self) -> None:
        with pytest.raises(ValidationError, match=re.escape('set train.layout = "padded"')):
            Train(aux_loss_tokens="all")
        assert Train(aux_loss_tokens="all", layout="padded").aux_loss_tokens == "all"

    def test_patience_needs_evaluations(self) -> None:
        with pytest.raises(ValidationError, match=re.escape("set eval.interval")):
            build("eval.patience", 3)
        assert Eval(interval=5, patience=3).patience == 3

    def test_held_out_pairs_have_one_source(self) -> None:
        with pytest.raises(ValidationError, match=re.escape("leave out eval.path")):
            Profile.model_validate(
                {
                    "model": {"tokenizer": "m"},
                    "data": {"data_path": "d"},
                    "eval": {"fraction": 0.1, "path": "e"},
                }
            )

    def test_a_global_batch_is_made_of_whole_micro_batches(self) -> None:
        with pytest.raises(ValidationError, match=r"train\.batch_size, which is 4"):
            Train(global_batch_size=6)

    def test_both_accumulation_keys_must_agree(self) -> None:
        with pytest.raises(ValidationError, match=re.escape("4 x 2 = 8")):
            Train(batch_size=4, accumulation_steps=2, global_batch_size=16)
        assert Train(batch_size=4, accumulation_steps=4, global_batch_size=16).accumulation_on(1)

    def test_several_machines_need_an_endpoint(self) -> None:
        with pytest.raises(ValidationError, match="several machines need a rendezvous address"):
            Launch(nnodes=2)
        assert Launch(nnodes=2, node_rank=1, rdzv_endpoint="node0:29400").nnodes == 2

    @pytest.mark.parametrize(
        ("train", "devices", "steps"),
        [
            (Train(), 1, 1),
            (Train(accumulation_steps=3), 8, 3),
            (Train(global_batch_size=32), 1, 8),
            (Train(global_batch_size=32), 8, 1),
            (Train(global_batch_size=32, accumulation_steps=8), 2, 4),
        ],
    )
    def test_accumulation(self, train: Train, devices: int, steps: int) -> None:
        assert train.accumulation_on(devices) == steps

    def test_a_global_batch_that_devices_cannot_share(self) -> None:
        with pytest.raises(UsageError, match=re.escape("4 x 3 = 12")):
            Train(global_batch_size=32).accumulation_on(3)


class TestObjective:
    """Tests of combinations of losses and settings; `tests/objective` tests the formulas."""

    def test_one_loss_is_an_array_of_one(self) -> None:
        assert Dpo(loss="ipo").losses == Dpo(loss=["ipo"]).losses == {"ipo": 1.0}

    def test_a_mixture_needs_what_any_of_its_losses_needs(self) -> None:
        assert Dpo().needs_reference
        assert not Dpo().needs_whole_batch
        mixture = Dpo(loss=["simpo", "sft"], loss_weights=[1.0, 0.2])
        assert mixture.losses == {"simpo": 1.0, "sft": 0.2}
        assert not mixture.needs_reference
        assert mixture.needs_whole_batch
        assert Dpo(loss=["simpo", "hinge"]).needs_reference

    def test_title(self) -> None:
        assert Dpo().title == "DPO"
        assert Dpo(loss="ipo").title == "ipo"
        mixture = Dpo(loss=["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.0])
        assert mixture.title == "0.8 sigmoid + 0.2 bco_pair + sft"

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({"loss": "ipo", "reduction": "sum"}, 'set dpo.reduction = "mean"'),
            ({"loss": ["sigmoid", "orpo"], "reduction": "sum"}, '"orpo" uses the mean over tokens'),
            ({"loss": "dpo"}, '"dpo" is not a loss; choose from sigmoid (DPO), hinge'),
            ({"loss": ["sigmoid", 3]}, "3 is not a loss"),
            ({"loss": ["sigmoid", "sigmoid"]}, "each loss once"),
            ({"loss": []}, "each loss once"),
            ({"loss": ["sigmoid", "sft"], "loss_weights": [1.0]}, "for example [1.0, 1.0]"),
            ({"loss_weights": [1.0, 2.0]}, 'each of dpo.loss = ["sigmoid"]'),
            ({"loss": "hinge", "label_smoothing": 0.1}, '"hinge" ignores it'),
            ({"loss": "exo_pair", "label_smoothing": 0.0}, "for example 1e-3"),
            (
                {"loss": "nca_pair", "f_divergence_type": "js_divergence"},
                'set dpo.f_divergence_type = "reverse_kl"',
            ),
            ({"loss": "simpo", "ld_alpha": 0.5}, "leave dpo.ld_alpha out"),
            ({"loss": "aot", "use_weighting": True}, "leave dpo.use_weighting out"),
        ],
        ids=str,
    )
    def test_contradictions(self, keys: dict[str, Any], message: str) -> None:
        with pytest.raises(ValidationError, match=re.escape(message)):
            Dpo(**keys)

    @pytest.mark.parametrize("name", LOSSES)
    def test_every_loss_works_by_its_name(self, name: Any) -> None:
        assert Dpo(loss=name).losses == {name: 1.0}


class TestJsonSchema:
    def test_snapshot(self) -> None:
        # Compared as values: pydantic versions differ in writing a limit as 0 or 0.0.
        assert json.loads(SNAPSHOT.read_text(encoding="utf-8")) == json_schema(), (
            "the published schema changed; if that is meant, renew the snapshot: python -c "
            "'import json; from dpo_cli.profile.json_schema import json_schema; "
            "print(json.dumps(json_schema(), indent=2, sort_keys=True, ensure_ascii=False))' "
            "> tests/profile/schema.snapshot.json"
        )

    def test_it_is_draft_4(self) -> None:
        schema = json_schema()
        assert schema["$schema"] == "http://json-schema.org/draft-04/schema#"
        check_draft4(schema, definitions=schema["definitions"])

    def test_it_holds_every_key_with_its_default_and_effect(self) -> None:
        definitions = json_schema()["definitions"]
        published = {
            f"{table}.{field}": schema
            for table in TABLES
            for field, schema in definitions[table]["properties"].items()
        }
        assert published.keys() == KEYS.keys()
        required_keys = {"model.tokenizer", "data.data_path"}
        for key, schema in published.items():
            assert schema["description"] == KEYS[key].description
            assert schema["x-effect"] == KEYS[key].effect
            default = None if key in required_keys else value_of(DEFAULTS, key)
            assert schema.get("default") == default

    def test_limits_are_draft_4s(self) -> None:
        definitions = json_schema()["definitions"]
        beta = definitions["dpo"]["properties"]["beta"]
        assert (beta["minimum"], beta["exclusiveMinimum"]) == (0, True)
        weight = definitions["dpo"]["properties"]["loss_weights"]["items"]
        assert (weight["minimum"], weight["exclusiveMinimum"]) == (0, True)
        dropout = definitions["model"]["properties"]["dropout"]
        assert (dropout["maximum"], dropout["exclusiveMaximum"]) == (1, True)
        assert "exclusiveMinimum" not in dropout

    def test_an_unset_key_has_no_null(self) -> None:
        hidden_size = json_schema()["definitions"]["model"]["properties"]["hidden_size"]
        assert hidden_size["type"] == "integer"
        assert "default" not in hidden_size

    def test_a_profile_may_extend_another(self) -> None:
        schema = json_schema()
        assert schema["properties"]["extends"]["type"] == "string"
        assert "required" not in schema
        assert not any("required" in table for table in schema["definitions"].values())


KEYWORDS: dict[str, Any] = {
    "anyOf": list,
    "$schema": str,
    "$ref": str,
    "title": str,
    "description": str,
    "type": str,
    "format": str,
    "pattern": str,
    "enum": list,
    "default": object,
    "minimum": (int, float),
    "maximum": (int, float),
    "exclusiveMinimum": bool,
    "exclusiveMaximum": bool,
    "minLength": int,
    "minItems": int,
    "maxItems": int,
    "items": dict,
    "properties": dict,
    "definitions": dict,
    "additionalProperties": (bool, dict),
    "x-effect": str,
}
TYPES = {"object", "string", "integer", "number", "boolean", "array"}


def check_draft4(schema: dict[str, Any], definitions: dict[str, Any]) -> None:
    """Check the rules of Draft 4's meta-schema for the keywords that are used here."""
    for keyword, value in schema.items():
        assert keyword in KEYWORDS, f"{keyword} is no keyword of Draft 4 that we use"
        assert isinstance(value, KEYWORDS[keyword]), f"{keyword}: {value}"
    if "$ref" in schema:
        assert schema.keys() == {"$ref"}, "Draft 4 ignores what stands beside a $ref"
        assert schema["$ref"].removeprefix("#/definitions/") in definitions
    elif "anyOf" in schema:
        assert {branch["type"] for branch in schema["anyOf"]} < TYPES
    else:
        assert schema["type"] in TYPES
    if "exclusiveMinimum" in schema:
        assert "minimum" in schema
    if "exclusiveMaximum" in schema:
        assert "maximum" in schema
    if "enum" in schema:
        assert len(set(schema["enum"])) == len(schema["enum"]) > 0
    for branch in (*schema.get("anyOf", []), *filter(None, [schema.get("items")])):
        check_draft4(branch, definitions)
    for children in ("properties", "definitions"):
        for child in schema.get(children, {}).values():
            check_draft4(child, definitions)
