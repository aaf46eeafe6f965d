"""Handle of a run for scripts and notebooks."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Literal, overload

from dpo_cli.api.arguments import OnProgress, Settings, as_overrides, refuse_ranks
from dpo_cli.api.display import Display
from dpo_cli.api.evaluation import evaluate_named
from dpo_cli.api.exporting import export_as
from dpo_cli.errors import DpoError, ExitCode
from dpo_cli.files import expanded
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Event, EventReader, history
from dpo_cli.run.models import NamedModel
from dpo_cli.run.spawn import SpawnedLauncher
from dpo_cli.run.start import AlreadyCompleteError, Start, resumed_run
from dpo_cli.run.view import RunState, RunView
from dpo_cli.ui.snapshot import panel_html, panel_text, read_panel
from dpo_cli.ui.terminal.ending import failure

if TYPE_CHECKING:
    from dpo_cli.export.export import ExportReport
    from dpo_cli.export.gguf.export import GgufReport
    from dpo_cli.export.push import PushReport
    from dpo_cli.inference.evaluate import Evaluation

_POLL_SECONDS = 0.2


class Run:
    """One training run: a run directory, and its child process while it trains.

    In a notebook a run is shown as its panel: curves, metrics, state.

    Example::

        run = dpo.open_run("my-run")
        print(run.view.state, run.view.recent_mean("loss"))
    """

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self._reader = EventReader(directory.events_path)
        self._view = RunView()
        self._launcher: SpawnedLauncher | None = None

    @property
    def name(self) -> str:
        """Name of the run directory, for `open_run` and the command line."""
        return self.directory.name

    @property
    def path(self) -> Path:
        """Path of the run directory."""
        return self.directory.path

    @property
    def view(self) -> RunView:
        """Summary of all events so far: state, step, curves, alerts, last evaluation."""
        for event in self._reader.read_new():
            self._view.take(event)
        return self._view

    @property
    def is_running(self) -> bool:
        """True while any process trains this run."""
        if self._launcher is not None and not self._launcher.has_ended():
            return True
        return self.directory.holder() is not None

    def events(self, *, follow: bool = False) -> Iterator[Event]:
        """Iterate over the events of the run.

        Args:
            follow: wait for new events until no process trains the run. Without it, iterate over
                the valid events: steps that a resume repeated appear once.

        Example::

            for event in run.events(follow=True):
                if isinstance(event, dpo.StepDone):
                    print(event.step, event.metrics["loss"])
        """
        if not follow:
            yield from history(self.directory.events_path)
            return
        reader = EventReader(self.directory.events_path)
        while True:
            is_over = not self.is_running  # read before the events, so that the last are not missed
            yield from reader.read_new()
            if is_over:
                return
            time.sleep(_POLL_SECONDS)

    def wait(self, *, show: bool = False) -> RunState:
        """Wait until no process trains the run.

        In the main thread, Ctrl-C and SIGTERM save and stop a run that this process started, and
        then end this process as usual. If this process is killed, training continues.

        Args:
            show: print progress, or draw the live panel in a notebook.

        Returns:
            RunState.COMPLETED or RunState.STOPPED.

        Raises:
            DpoError: the run failed or was killed.
            KeyboardInterrupt: Ctrl-C, after the run has saved.
        """
        display = Display(self.directory, self) if show else None
        reader = EventReader(self.directory.events_path)
        if show:
            for _ in reader.read_new():  # a resumed run has shown these before
                pass
        with _relayed_signals(self._launcher) as received:
            while True:
                is_over = not self.is_running
                if display:
                    display.update(reader.read_new(), is_over=is_over)
                if is_over:
                    break
                time.sleep(_POLL_SECONDS)
        launcher, self._launcher = self._launcher, None
        try:
            if launcher is not None:
                launcher.result()
        finally:
            # The run has stopped; now the signal has its usual effect on this process.
            if signal.SIGTERM in received:
                raise SystemExit(int(ExitCode.TERMINATED))
            if received:
                raise KeyboardInterrupt
        if launcher is None and (reason := failure(self.view)):
            raise DpoError(*reason)
        return self.view.state

    def stop(self, *, wait: bool = True) -> RunState:
        """Stop the run after its current step, with everything saved.

        Args:
            wait: wait for the end; without it the request is only placed.

        Returns:
            RunState of the run; unchanged if no process trains it.

        Raises:
            DpoError: the run failed before it could save.
        """
        # A launcher discards requests that were placed before its worker started.
        while self.is_running and self.view.worker is None:
            time.sleep(_POLL_SECONDS)
        if self.is_running:
            self.directory.put_request("stop")
        if not wait:
            return self.view.state
        try:
            return self.wait()
        except DpoError as error:
            if error.exit_code is not ExitCode.INTERRUPTED:
                raise
            return RunState.STOPPED  # before the first step: there was nothing to save

    def resume(
        self,
        settings: Settings | None = None,
        *,
        allow_changes: bool = False,
        exact: bool = False,
        wait: bool = True,
        show: bool = True,
    ) -> Run:
        """Continue the run from its newest checkpoint, with the results of an uninterrupted run.

        A completed run continues if `settings` add epochs or patience; else nothing happens.

        Args:
            settings: changed profile values.
            allow_changes: accept settings that change the mathematics.
            exact: refuse to continue if the results could differ in their last bits.
            wait: return when training ends; else at once.
            show: print progress, or draw the live panel in a notebook.

        Raises:
            UsageError: a change is not allowed, or an input is missing.
            DpoError: another process trains the run, or training failed.

        Example::

            run.resume({"train.epochs": 4}, allow_changes=True)
        """
        refuse_ranks()
        try:
            with resumed_run(
                self.directory, as_overrides(settings), allow_changes=allow_changes, exact=exact
            ) as start:
                self.launch(start)
        except AlreadyCompleteError:
            return self
        if wait:
            self.wait(show=show)
        return self

    def evaluate(
        self,
        data: str | Path | None = None,
        *,
        reference: str | Path | None = None,
        best: bool = False,
        settings: Settings | None = None,
        on_progress: OnProgress | None = None,
    ) -> Evaluation:
        """Evaluate the newest weights of the run on preference pairs; see `evaluate`.

        Example::

            accuracy = run.evaluate().models[0].groups["all"]["rewards/accuracies"]
        """
        return evaluate_named(
            NamedModel(self.path, self.directory),
            data,
            reference=reference,
            best=best,
            settings=settings,
            runs_dir=self.path.parent,
            on_progress=on_progress,
        )

    @overload
    def export(
        self,
        to: str | Path | None = None,
        *,
        format: Literal["gguf"],
        quantization: Sequence[str] | None = None,
        best: bool = False,
        force: bool = False,
        settings: Settings | None = None,
    ) -> GgufReport: ...

    @overload
    def export(
        self,
        to: str | Path | None = None,
        *,
        format: Literal["pth", "hf", "peft"] | None = None,
        dtype: Literal["float16", "bfloat16", "float32"] | None = None,
        rounding: Literal["nearest", "stochastic"] | None = None,
        seed: int | None = None,
        best: bool = False,
        force: bool = False,
        settings: Settings | None = None,
    ) -> ExportReport: ...

    def export(
        self,
        to: str | Path | None = None,
        *,
        format: Literal["pth", "hf", "peft", "gguf"] | None = None,
        quantization: Sequence[str] | None = None,
        dtype: Literal["float16", "bfloat16", "float32"] | None = None,
        rounding: Literal["nearest", "stochastic"] | None = None,
        seed: int | None = None,
        best: bool = False,
        force: bool = False,
        settings: Settings | None = None,
    ) -> ExportReport | GgufReport:
        """Write the newest weights for MiniMind, transformers or llama.cpp, and verify them.

        Args:
            to: file or directory to write; its parent must exist. By default a name in
                model.out_dir, or in the run directory if that is not set.
            format: "pth", a MiniMind weights file, "hf", a Hugging Face directory, "peft", the
                directory of an adapter, or "gguf", a directory of files for llama.cpp and Ollama;
                by default the format of the starting weights, with an adapter merged.
            quantization: formats of the GGUF files, for example ["f16", "q8_0"]; by default f16.
            dtype: precision of the file; by default the profile's.
            rounding: "stochastic" keeps small updates on average in a half-precision file; the
                default for a bfloat16 file of weights that started as bfloat16, else "nearest".
            seed: seed of stochastic rounding; by default train.seed.
            best: write the checkpoint with the lowest held-out loss, not the newest. Needs
                held-out pairs, and eval.keep_best = true during training.
            force: replace a file that this run did not write, but never an input of the run.
            settings: changed profile values, for example where the data is now. Tokenizer and
                data are read again for the comparison; starting weights, if they are still
                there, for the update retention.

        Returns:
            An `ExportReport`: path, dtype, size, log-prob differences and update retention. For
            GGUF a `GgufReport`: path, files with size and update retention, and the proof.

        Raises:
            UsageError: an argument is not one of its choices, or an input is missing.
            DpoError: there is no checkpoint or no best one, the destination has foreign files, or
                the file does not load back as it was written.
            NoSpaceError: the disk is full.

        Example::

            print(run.export("my-model", format="hf").path)
        """
        return export_as(
            self.directory,
            to,
            format=format,
            quantization=quantization,
            dtype=dtype,
            rounding=rounding,
            seed=seed,
            best=best,
            force=force,
            settings=settings,
        )

    def push(
        self,
        repository: str,
        source: str | Path | None = None,
        *,
        public: bool = False,
        settings: Settings | None = None,
    ) -> PushReport:
        """Upload an exported model of the run to the Hugging Face Hub, with its model card.

        After an interruption, call it again: files that were sent completely are not sent again.

        Args:
            repository: "ORG/NAME". An existing one is replaced only if a push has written it.
            source: directory or file that `export` wrote; by default the newest exported directory
                that is unchanged, or a new one in the run directory.
            public: let everybody see the model; by default it is private.
            settings: changed profile values for a new export; see `export`.

        Returns:
            A `PushReport`: url, commit, path, files and size.

        Raises:
            UsageError: the name is not ORG/NAME, or the source is missing.
            DpoError: you are not logged in or may not write there, the Hub cannot be reached, the
                name is taken, or the source is no export of this run.

        Example::

            print(run.push("my-name/my-model").url)
        """
        from dpo_cli.export.push import push_run  # loads torch

        return push_run(
            self.directory,
            repository,
            None if source is None else expanded(source),
            is_public=public,
            overrides=as_overrides(settings),
        )

    def __repr__(self) -> str:
        return f"Run({self.name!r}, {self.view.state})"

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        """Show the panel in a notebook."""
        panel = read_panel(self.directory)
        return {"text/plain": panel_text(panel), "text/html": panel_html(panel)}

    def launch(self, start: Start) -> None:
        """Start training in a new launcher process, and reset the state of the last start."""
        self.view.expect_start()
        self._launcher = SpawnedLauncher(start)


@contextmanager
def _relayed_signals(launcher: SpawnedLauncher | None) -> Iterator[list[int]]:
    """Relay Ctrl-C and SIGTERM to the launcher for a block, and list those that came."""
    received: list[int] = []
    # Python allows signal handlers in the main thread only; other threads receive no signals.
    if launcher is None or threading.current_thread() is not threading.main_thread():
        yield received
        return

    def relay(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        launcher.send_signal(number)

    before = {number: signal.signal(number, relay) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
