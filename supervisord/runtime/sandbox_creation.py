"""Makes sandboxes and ends them: bundle, shim, and the sandbox in it.

As with tasks, the bundle with the shim's address is there before the shim, and the record that
calls it whole after everything else; what a failed creation had made is undone.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from supervisord.aio.owner import TaskOwner
from supervisord.contracts.errors import Error, Unavailable, Unknown
from supervisord.contracts.sandboxes import CreateSandbox
from supervisord.contracts.workers import ShimSpawner
from supervisord.linux import process

from . import names
from .bundle import Bundle, ShimRecord
from .burial import Burial
from .foreign import ForeignLauncher
from .launch import Launcher, Settings, listen
from .oci import OciRuntimes
from .sandbox import Instance
from .sandbox_bundle import SandboxBundles
from .sandbox_shim import SandboxShim
from .shim import Shim

log = logging.getLogger(__name__)

_END_SECONDS = 30.0
_DELETE_SECONDS = 20.0


class SandboxCreation:
    """Called by ``sandboxes``, which holds the lock of the sandbox's name meanwhile."""

    def __init__(
        self,
        settings: Settings,
        spawner: ShimSpawner,
        runtimes: OciRuntimes,
        owner: TaskOwner,
        watching: TaskOwner,
    ) -> None:
        self.store = SandboxBundles(settings.state)
        self._settings = settings
        self._runtimes = runtimes
        self._owner = owner
        self._foreign = ForeignLauncher(settings, watching)
        self._launcher = Launcher(settings, spawner, owner)
        self._burial = Burial(self.store, self._foreign)

    async def create(self, namespace: str, wanted: CreateSandbox) -> Instance:
        """The sandbox, created and connected.

        Raises InvalidArgument, NotFound (runtime), Unimplemented (a shim that knows none),
        Unavailable, ResourceExhausted, Unknown; nothing is left then."""
        binary = names.resolve(wanted.sandbox.runtime.name, named=self._settings.shims)
        async with AsyncExitStack() as undo:
            if binary:
                shim, record = await self._foreign_shim(binary, namespace, wanted, undo)
            else:
                shim, record = await self._our_shim(namespace, wanted, undo)
            record = replace(record, init_pid=record.pid or 1, init_start=record.start_time)
            bundle = self.store.bundle(namespace, wanted.sandbox.id)
            bundle.write_record(record)
            undo.pop_all()
        return Instance(bundle, record, shim)

    async def _our_shim(
        self, namespace: str, wanted: CreateSandbox, undo: AsyncExitStack
    ) -> tuple[SandboxShim, ShimRecord]:
        runtime = await self._runtimes.default()
        record = ShimRecord(self._settings.new_address())
        bundle = self._lay_out(namespace, wanted, record, undo)
        listener = listen(record.address)
        undo.callback(listener.close)
        client, forking = await self._launcher.launch(bundle, record.address, listener, runtime)
        shim = SandboxShim(client, *_key(bundle), record)
        undo.push_async_callback(self._end_forked, bundle, shim, record, forking)
        try:
            await shim.create(bundle.path, wanted)
        except Unavailable as error:
            if not shim.is_lost:
                raise
            await forking  # its failure is the reason, if it failed
            words = bundle.log_tail()
            raise Unknown(f"the shim ended while it created the sandbox: {words}") from error
        pid = await forking
        return shim, replace(record, pid=pid, start_time=process.start_time(pid) or 0)

    async def _foreign_shim(
        self, binary: str, namespace: str, wanted: CreateSandbox, undo: AsyncExitStack
    ) -> tuple[SandboxShim, ShimRecord]:
        bundle = self._lay_out(namespace, wanted, ShimRecord("", binary=binary), undo)
        options = wanted.sandbox.runtime.options
        client, record = await self._foreign.launch(binary, bundle, options, undo)
        shim = SandboxShim(client, *_key(bundle), record)
        undo.push_async_callback(self._end_shim, bundle, shim, record)
        await shim.create(bundle.path, wanted)
        return shim, record

    def _lay_out(
        self, namespace: str, wanted: CreateSandbox, record: ShimRecord, undo: AsyncExitStack
    ) -> Bundle:
        sandbox = wanted.sandbox
        try:
            bundle = self.store.create(namespace, sandbox.id, sandbox.spec.value)
        finally:
            for leftover in self.store.leftovers:
                self._owner.spawn(self._burial.empty(leftover), f"leftover of {sandbox.id}")
            self.store.leftovers.clear()
        undo.push_async_callback(self._remove, bundle, record.address)
        bundle.write_record(record)
        return bundle

    # Ends: none of these fails ------------------------------------------------------------

    async def end(self, one: Instance) -> None:
        """Has the shim end, if it lives, and removes the bundle."""
        try:
            shim: SandboxShim | None = await one.reach()
        except Unavailable as error:
            log.debug("sandbox %s: %s", one.id, error)
            shim = None
        await self._end_shim(one.bundle, shim, one.record)
        if one.record.binary:
            await self.clean_up(one)
        await self._remove(one.bundle, "")

    async def end_half_made(self, bundle: Bundle, record: ShimRecord | None) -> None:
        """Removes what a creation has left that was never finished."""
        if record is not None and record.address:
            await self.end(Instance(bundle, record))
            return
        if record is not None and record.binary:  # it may have started before we knew where
            await self.clean_up(Instance(bundle, record))
        await self._remove(bundle, "")

    async def clean_up(self, one: Instance) -> None:
        """Has the executable of a foreign shim clean up after its shim has ended."""
        try:
            run = self._foreign.run
            await run(one.record.binary, one.bundle, "delete", b"", _DELETE_SECONDS)
        except Error as error:
            log.warning("sandbox %s: %s", one.id, error)

    def read_log(self, one: Instance) -> None:
        """Goes on taking the log of a foreign shim of an earlier run."""
        if one.record.binary:
            self._foreign.read_log(one.bundle)

    async def _end_forked(
        self, bundle: Bundle, shim: SandboxShim, record: ShimRecord, forking: asyncio.Task[int]
    ) -> None:
        try:
            pid = await forking
        except Error:
            shim.close()  # there never was a shim
            return
        record = replace(record, pid=pid, start_time=process.start_time(pid) or 0)
        await self._end_shim(bundle, shim, record)

    async def _end_shim(self, bundle: Bundle, shim: SandboxShim | None, record: ShimRecord) -> None:
        """By the sandbox API; else as a shim without tasks; else by force."""
        rest: Shim | None = None
        if shim is not None and not shim.is_lost:
            try:
                async with asyncio.timeout(_END_SECONDS):
                    await shim.shutdown()
                    await shim.closed
            except (Error, TimeoutError) as error:
                log.debug("shim of sandbox %s: %s", bundle.id, error)
            if not shim.is_lost:
                rest = Shim(shim.client, *_key(bundle), record.version)
        await self._burial.end_shim(rest, record)

    async def _remove(self, bundle: Bundle, address: str) -> None:
        if address:
            Path(address).unlink(missing_ok=True)
        await self._burial.empty(self.store.discard(bundle))


def _key(bundle: Bundle) -> tuple[str, str]:
    return bundle.namespace, bundle.id
