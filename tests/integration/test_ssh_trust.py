from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import asyncssh
import pytest
from iotjobs_sim.sshd import SshServer, start_openssh

from iotjobs.domain.errors import HostKeyChanged, HostKeyUnknown
from iotjobs.transports.ssh import SshTarget, SshTransport
from iotjobs.transports.ssh_trust import read_authorities
from tests.services import zoo
from tests.services.site import Rest, StartServe, eventually
from tests.services.ssh import QUICK, nonce, run, target_of
from tests.services.zoo import HOST_KEY, Record, public_line, ssh_server

pytestmark = pytest.mark.check(21)
OTHER = asyncssh.generate_private_key("ssh-ed25519")
AUTHORITY = asyncssh.generate_private_key("ssh-ed25519")
SECRET = "the-password-of-the-device"


def certified(**changes: object) -> tuple[asyncssh.SSHKey, asyncssh.SSHCertificate]:
    """The zoo's host key with a certificate of the authority."""
    values: dict[str, object] = {"principals": ["127.0.0.1"], **changes}
    certificate = AUTHORITY.generate_host_certificate(HOST_KEY, "host", **values)  # type: ignore[arg-type]
    return HOST_KEY, certificate


async def refused(
    transport: SshTransport, target: SshTarget, record: Record, kind: type[Exception], *mentions: str
) -> None:
    """It ends in this error, which names these, and the host was told nothing."""
    with pytest.raises(kind) as caught:
        await run(transport, target, "true", env={"PASSWORD": SECRET})
    assert record.told == []
    assert not caught.value.maybe_executed  # type: ignore[attr-defined]
    for mention in mentions:
        assert mention in str(caught.value)


async def test_a_host_without_a_key_on_record_is_not_even_connected_to(quick_ssh: SshTransport) -> None:
    record = Record()
    async with ssh_server(zoo.binary, record=record) as target:
        await refused(quick_ssh, replace(target, host_keys=()), record, HostKeyUnknown, "nothing was sent")
    assert record.connections == 0


@pytest.mark.parametrize("line", ["garbage", "@strange ssh-ed25519 AAAA", "ssh-ed25519 AAAA", ""])
async def test_a_line_that_cannot_be_read_trusts_nobody(quick_ssh: SshTransport, line: str) -> None:
    record = Record()
    async with ssh_server(zoo.binary, record=record) as target:
        await refused(quick_ssh, replace(target, host_keys=(line,)), record, HostKeyUnknown)
    assert record.connections == 0


async def test_the_pinned_key_is_believed(quick_ssh: SshTransport) -> None:
    record = Record()
    async with ssh_server(zoo.binary, record=record) as target:
        assert (await run(quick_ssh, target, "true"))[0].exit_code == 0
    assert record.told == ["login keeper", "exec"]


async def test_another_key_is_refused_with_both_fingerprints(quick_ssh: SshTransport) -> None:
    record = Record()
    async with ssh_server(zoo.binary, record=record, host_key=OTHER) as target:
        prints = OTHER.get_fingerprint(), HOST_KEY.get_fingerprint()
        await refused(quick_ssh, target, record, HostKeyChanged, *prints)
    assert record.connections == 1


async def test_a_key_of_another_kind_is_refused_too(quick_ssh: SshTransport) -> None:
    record, other = Record(), asyncssh.generate_private_key("ecdsa-sha2-nistp256")
    async with ssh_server(zoo.binary, record=record, host_key=other) as target:
        prints = other.get_fingerprint(), HOST_KEY.get_fingerprint()
        await refused(quick_ssh, target, record, HostKeyChanged, *prints)


async def test_a_revoked_key_is_refused_also_when_it_is_pinned(quick_ssh: SshTransport) -> None:
    record, line = Record(), public_line(HOST_KEY)
    async with ssh_server(zoo.binary, record=record) as target:
        target = replace(target, host_keys=(line, f"@revoked {line}"))
        await refused(quick_ssh, target, record, HostKeyChanged, "revoked", HOST_KEY.get_fingerprint())


async def test_a_certificate_of_the_authority_is_believed(quick_ssh: SshTransport) -> None:
    record = Record()
    async with ssh_server(zoo.binary, record=record, host_key=certified()) as target:
        target = replace(target, host_keys=(f"@cert-authority {public_line(AUTHORITY)}",))
        assert (await run(quick_ssh, target, "true"))[0].exit_code == 0


@pytest.mark.parametrize(
    ("changes", "mention"),
    [
        ({"principals": ["other-host"]}, "rincipal"),
        ({"valid_after": 0, "valid_before": 1_000_000_000}, "expired"),
        ({"valid_after": 4_000_000_000, "valid_before": 4_100_000_000}, "not yet valid"),
    ],
    ids=["wrong principal", "expired", "not yet valid"],
)
async def test_a_certificate_that_does_not_hold_is_refused(
    quick_ssh: SshTransport, changes: dict[str, object], mention: str
) -> None:
    record = Record()
    async with ssh_server(zoo.binary, record=record, host_key=certified(**changes)) as target:
        target = replace(target, host_keys=(f"@cert-authority {public_line(AUTHORITY)}",))
        await refused(quick_ssh, target, record, HostKeyChanged, mention)


async def test_a_certificate_of_another_authority_is_refused(quick_ssh: SshTransport) -> None:
    record = Record()
    async with ssh_server(zoo.binary, record=record, host_key=certified()) as target:
        target = replace(target, host_keys=(f"@cert-authority {public_line(OTHER)}",))
        await refused(quick_ssh, target, record, (HostKeyChanged), AUTHORITY.get_fingerprint())


async def test_a_key_without_a_certificate_is_unknown_where_an_authority_is_asked_for(
    quick_ssh: SshTransport,
) -> None:
    record = Record()
    async with ssh_server(zoo.binary, record=record) as target:
        target = replace(target, host_keys=(f"@cert-authority {public_line(AUTHORITY)}",))
        await refused(quick_ssh, target, record, HostKeyUnknown, HOST_KEY.get_fingerprint())


async def test_the_sites_authority_and_file_are_believed(tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    async with ssh_server(zoo.binary, host_key=certified()) as target:
        target = replace(target, host_keys=())
        transport = SshTransport(host_authorities=(public_line(AUTHORITY),))
        try:
            assert (await run(transport, target, "true"))[0].exit_code == 0
        finally:
            await transport.close()
    async with ssh_server(zoo.binary) as target:
        target = replace(target, host_keys=())
        known.write_text(f"[127.0.0.1]:{target.port} {public_line(OTHER)}\n")
        transport = SshTransport(known_hosts_file=known)
        try:
            with pytest.raises(HostKeyChanged):
                await run(transport, target, "true")
            known.write_text(f"# changed\n[127.0.0.1]:{target.port} {public_line(HOST_KEY)}\n")
            assert (await run(transport, target, "true"))[0].exit_code == 0
            with pytest.raises(HostKeyUnknown):
                await run(transport, replace(target, key="b", host="localhost"), "true")
            known.unlink()
            with pytest.raises(HostKeyUnknown, match="cannot be read"):
                await run(transport, replace(target, key="c"), "true")
        finally:
            await transport.close()


def keygen(*words: object) -> None:
    subprocess.run(["ssh-keygen", "-q", *map(str, words)], check=True, stdin=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def authorities(ssh_folder: Path) -> dict[str, Path]:
    """Two CAs that OpenSSH's own tool made: the private key's file of each."""
    made = {name: ssh_folder / f"ca-{name}" for name in ("ours", "theirs")}
    for path in made.values():
        keygen("-t", "ed25519", "-N", "", "-f", path)
    return made


@pytest.fixture
def certified_sshd(ssh_folder: Path, authorities: dict[str, Path]) -> Iterator[Callable[..., SshServer]]:
    """Starts sshd with a host certificate of a CA for a principal."""
    with ExitStack() as running:

        def start(signer: str = "ours", principal: str = "127.0.0.1") -> SshServer:
            folder = ssh_folder / f"certified-{nonce()}"
            folder.mkdir()
            keygen("-t", "ed25519", "-N", "", "-f", folder / "host_ed25519")
            key = folder / "host_ed25519.pub"
            keygen("-s", authorities[signer], "-I", "press", "-h", "-n", principal, "-V", "-5m:+1h", key)
            certificate = f"HostCertificate {folder / 'host_ed25519-cert.pub'}"
            return running.enter_context(start_openssh(folder, settings=(certificate,)))

        yield start


@pytest.fixture
async def believer(authorities: dict[str, Path]) -> AsyncIterator[SshTransport]:
    """A transport of a site whose IOTJOBS_SSH_HOST_CA_FILE names the first CA."""
    lines = read_authorities(authorities["ours"].with_suffix(".pub"))
    transport = SshTransport(limits=QUICK, host_authorities=lines)
    yield transport
    await transport.close()


async def test_openssh_with_a_certificate_of_the_sites_ca_is_believed(
    believer: SshTransport, certified_sshd: Callable[..., SshServer]
) -> None:
    target = target_of(certified_sshd(), host_keys=())

    assert (await run(believer, target, "true"))[0].exit_code == 0


@pytest.mark.parametrize(
    ("signer", "principal", "kind", "said"),
    [
        ("theirs", "127.0.0.1", HostKeyChanged, "a host certificate signed by SHA256:"),
        ("ours", "other-host", HostKeyChanged, "rincipal"),
    ],
    ids=["another CA", "wrong principal"],
)
async def test_openssh_with_a_certificate_that_does_not_hold_is_refused(
    believer: SshTransport,
    certified_sshd: Callable[..., SshServer],
    signer: str,
    principal: str,
    kind: type[Exception],
    said: str,
) -> None:
    server = certified_sshd(signer, principal)

    with pytest.raises(kind, match=said):
        await run(believer, target_of(server, host_keys=()), "true")
    # Its own pinned key goes before the site's CA.
    assert (await run(believer, target_of(server, key="pinned"), "true"))[0].exit_code == 0


async def test_openssh_without_a_certificate_is_unknown_to_the_sites_ca(
    believer: SshTransport, openssh: SshServer
) -> None:
    with pytest.raises(HostKeyUnknown, match="no trusted authority has signed"):
        await run(believer, target_of(openssh, host_keys=()), "true")


async def test_the_setting_brings_the_ca_to_the_site(
    make_serve: StartServe, certified_sshd: Callable[..., SshServer], authorities: dict[str, Path]
) -> None:
    serve = make_serve(ssh_host_ca_file=str(authorities["ours"].with_suffix(".pub")))
    await serve.start()
    async with Rest(serve) as rest:
        for signer, outcome in (("ours", "succeeded"), ("theirs", "rejected")):
            owner = await rest.device(certified_sshd(signer), ssh={"host_key": None})
            job = await rest.run(owner, await rest.script(owner, "true"))
            assert job["outcome"] == outcome


async def test_a_file_that_is_no_ca_ends_the_start_and_says_why(
    make_serve: StartServe, authorities: dict[str, Path]
) -> None:
    serve = make_serve(ssh_host_ca_file=str(authorities["ours"]))
    process = serve.process = serve.launch()

    code = await eventually(process.poll, 20)

    assert code == 2
    assert "IOTJOBS_SSH_HOST_CA_FILE: line 1 of" in serve.log
    assert "Traceback" not in serve.log


async def test_the_pinned_one_of_several_keys_is_asked_for(ssh: SshTransport, ssh_folder: Path) -> None:
    folder = ssh_folder / f"keys-{nonce()}"
    with start_openssh(folder, host_keys=("ed25519", "ecdsa", "rsa")) as server:
        for line in server.host_keys:
            target = target_of(server, key=line, host_keys=(line,))
            assert (await run(ssh, target, "true"))[0].exit_code == 0
        shown = await ssh.scan_host_key(server.host, server.port)
    assert {key.line for key in shown} == set(server.host_keys)


async def test_scanning_logs_nobody_in(quick_ssh: SshTransport) -> None:
    record = Record()
    async with ssh_server(zoo.binary, record=record) as target:
        [shown] = await quick_ssh.scan_host_key(target.host, target.port)
    assert (shown.line, shown.fingerprint) == (public_line(HOST_KEY), HOST_KEY.get_fingerprint())
    assert record.told == []


async def test_a_check_stops_at_the_host_key(quick_ssh: SshTransport) -> None:
    record = Record()
    async with ssh_server(zoo.binary, record=record, host_key=OTHER) as target:
        steps = await quick_ssh.check(target)
    assert [(step.name, step.ok) for step in steps] == [("dns", True), ("tcp", True), ("host key", False)]
    assert OTHER.get_fingerprint() in steps[-1].detail
    assert record.told == []


async def test_a_check_names_refused_credentials(quick_ssh: SshTransport, openssh: SshServer) -> None:
    steps = await quick_ssh.check(target_of(openssh, credential=zoo.zoo_target(1).credential))
    assert [(step.name, step.ok) for step in steps][2:] == [("host key", True), ("auth", False)]


async def test_a_check_of_nobody_fails_at_tcp(quick_ssh: SshTransport) -> None:
    async with ssh_server(zoo.binary) as target:
        pass
    steps = await quick_ssh.check(target)
    assert [(step.name, step.ok) for step in steps] == [("dns", True), ("tcp", False)]
    steps = await quick_ssh.check(replace(target, host="no-such-host.invalid"))
    assert [(step.name, step.ok) for step in steps] == [("dns", False)]


async def test_a_check_behind_a_jump_host_that_refuses_us_says_so(
    quick_ssh: SshTransport, openssh: SshServer
) -> None:
    jump = target_of(openssh, key="jump", credential=zoo.zoo_target(1).credential)
    steps = await quick_ssh.check(target_of(openssh, jump=jump))
    assert [(step.name, step.ok) for step in steps] == [("dns", True), ("tcp", False)]
    assert "the jump host" in steps[-1].detail
    assert "refused the login" in steps[-1].detail


async def test_a_check_behind_a_jump_host_names_each_step(
    quick_ssh: SshTransport, openssh: SshServer
) -> None:
    jump = target_of(openssh, key="jump")
    steps = await quick_ssh.check(target_of(openssh, jump=jump))
    assert [step.name for step in steps if step.ok] == ["dns", "tcp", "host key", "auth", "exec"]
    assert jump.address in steps[1].detail
