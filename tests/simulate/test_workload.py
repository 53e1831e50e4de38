"""Workloads: written by hand, from traces, made up; and what is said about mistakes in them."""

import dataclasses
import gzip
import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from vcpusched.model import PPM, Cpu, CpuSet, Topology
from vcpusched.simulate import traces
from vcpusched.simulate.workload import Guest, PinAnswer, Workload, WorkloadError, scaled, split
from vcpusched.simulate.workload_files import read_toml, read_trace

HEAD = "cpus = 4\nperiods = 10\n"


def written(directory: Path, text: str) -> Path:
    """Write a workload file."""
    path = directory / "workload.toml"
    path.write_text(text)
    return path


def guests(directory: Path, text: str) -> tuple[Guest, ...]:
    """Read the guests of a file with 4 pCPUs and 10 periods."""
    return read_toml(written(directory, HEAD + text)).guests


def test_a_guest_of_two_lines(tmp_path: Path) -> None:
    """A name and a load are enough: one vCPU from beginning to end, anywhere."""
    workload = read_toml(written(tmp_path, HEAD + '[[guest]]\nname = "a"\nload = 12.5\n'))
    assert (workload.cpu_count, workload.periods, workload.seed) == (4, 10, 0)
    (guest,) = workload.guests
    assert guest == Guest("a", ((125_000,) * 10,))
    assert guest.end == 10


def test_all_keys_of_a_guest(tmp_path: Path) -> None:
    """What is written is what there is."""
    (guest,) = guests(
        tmp_path,
        '[[guest]]\nname = "a"\nload = [[0, 10], [4, 80]]\nvcpus = 2\nallowed = "0-2"\npin = "1"\n'
        'shares = 2048\nstart = 2\nend = 6\nrestarts = [3]\nrefuses_pins = "busy"\n'
        'policy = "spread"\n',
    )
    loads = (100_000, 100_000, 800_000, 800_000)
    assert guest == Guest(
        "a",
        (loads, loads),
        start=2,
        shares=2048,
        allowed=CpuSet.parse("0-2"),
        pin=CpuSet.parse("1"),
        restarts=(3,),
        refuses=PinAnswer.BUSY,
        policy="spread",
    )


def test_many_alike(tmp_path: Path) -> None:
    """With `count` each gets a number, and noise of its own."""
    found = guests(tmp_path, '[[guest]]\nname = "a"\ncount = 3\nload = 50\nnoise = 10\n')
    assert [guest.name for guest in found] == ["a-1", "a-2", "a-3"]
    assert len({guest.loads_ppm for guest in found}) == 3
    assert all(450_000 <= load <= 550_000 for guest in found for load in guest.loads_ppm[0])


def test_floating_in_a_pool(tmp_path: Path) -> None:
    """To float is to have the whole of the definition; a pool is narrower."""
    found = guests(
        tmp_path,
        '[[guest]]\nname = "a"\nload = 1\nallowed = "0-2"\npin = "float"\n'
        '[[guest]]\nname = "b"\nload = 1\npin = "2-3"\n',
    )
    assert [str(guest.pin) for guest in found] == ["0-2", "2-3"]


def test_the_command_line_outranks_the_file(tmp_path: Path) -> None:
    """Periods and seed may be overridden."""
    path = written(tmp_path, HEAD + 'seed = 3\n[[guest]]\nname = "a"\nload = 50\nnoise = 10\n')
    assert read_toml(path).seed == 3
    longer = read_toml(path, periods=20, seed=4)
    assert (longer.periods, longer.seed, longer.guests[0].end) == (20, 4, 20)
    assert longer.guests[0].loads_ppm[0][:10] != read_toml(path).guests[0].loads_ppm[0]


def test_a_topology(tmp_path: Path) -> None:
    """What is given, by pCPU; else it is not known, and a pCPU that is not named does 100%."""
    text = (
        'cpus = 4\nperiods = 10\nnodes = ["0-1", "2-3"]\ncaches = ["0-1"]\ncores = ["0,1", "3"]\n'
        'capacities = [["2", 62.5], ["3", 100]]\n'
        '[[guest]]\nname = "a"\nload = 5\nmemory_nodes = "1"\n'
    )
    workload = read_toml(written(tmp_path, text))
    assert workload.topology == Topology(
        (
            Cpu(0, 0, 0, 0),
            Cpu(1, 0, 0, 0),
            Cpu(2, 1, None, None, 625_000),
            Cpu(3, 1, 3, None),
        )
    )
    assert workload.guests[0].memory_nodes == {1}
    plain = read_toml(written(tmp_path, HEAD + GUEST))
    assert plain.topology == Topology(tuple(map(Cpu, range(plain.cpu_count))))
    assert plain.guests[0].memory_nodes == frozenset()


GUEST = '[[guest]]\nname = "web"\nload = 5\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cpus = 0\n" + GUEST, "cpus: 0 is not allowed: must be a whole number from 1 to 1024"),
        ('cpus = "4"\n' + GUEST, 'cpus: "4" is not allowed: must be a whole number from 1 to'),
        (GUEST, "cpus: is missing: must be a whole number"),
        ("cpus = 1\n", "guest: is missing: must be at least one table [[guest]]"),
        ("cpus = 1\nguest = 3\n", "guest: 3 is not allowed: must be at least one table"),
        ("cpus = 1\nguest = [3]\n", "guest: 3 is not allowed: must be at least one table"),
        ("cpus = 1\ncpu = 2\n" + GUEST, "cpu: no such key; there are cpus, periods, seed,"),
        (HEAD + GUEST + "laod = 3\n", "guest 1 (web): laod: no such key; there are name, load,"),
        (HEAD + '[[guest]]\nname = "a"\n', "guest 1 (a): load: is missing: must be a number of"),
        (HEAD + "[[guest]]\nload = 1\n", "guest 1 (unnamed): name: is missing: must be a text"),
        (HEAD + '[[guest]]\nname = "a"\nload = 101\n', "guest 1 (a): load: 101 is not allowed"),
        (HEAD + '[[guest]]\nname = "a"\nload = nan\n', "guest 1 (a): load: NaN is not allowed"),
        (HEAD + '[[guest]]\nname = "a"\nload = true\n', "load: true is not allowed: must be a num"),
        (HEAD + '[[guest]]\nname = "a"\nload = []\n', "load: [] is not allowed: must be steps in"),
        (HEAD + '[[guest]]\nname = "a"\nload = [[2, 5]]\n', "the first no later than `start`"),
        (HEAD + '[[guest]]\nname = "a"\nload = [[0, 5, 1]]\n', "load: [[0, 5, 1]] is not allowed"),
        (HEAD + GUEST + 'pin = "4"\n', 'guest 1 (web): pin: "4" is not allowed: must be "float",'),
        (HEAD + GUEST + 'pin = "x"\n', 'guest 1 (web): pin: "x" is not allowed'),
        (HEAD + GUEST + 'pin = ""\n', 'guest 1 (web): pin: "" is not allowed'),
        (HEAD + GUEST + "pin = 1\n", "guest 1 (web): pin: 1 is not allowed"),
        (
            HEAD + GUEST + 'pin = "1"\nallowed = "0"\n',
            'allowed: "0" is not allowed: must be a list',
        ),
        (HEAD + GUEST + "start = 10\n", "guest 1 (web): start: 10 is not allowed: must be a per"),
        (HEAD + GUEST + "start = 5\nend = 5\n", "guest 1 (web): end: 5 is not allowed: must be a"),
        (HEAD + GUEST + "end = 11\n", "guest 1 (web): end: 11 is not allowed"),
        (HEAD + GUEST + "restarts = [0]\n", "guest 1 (web): restarts: [0] is not allowed"),
        (HEAD + GUEST + "shares = 1\n", "guest 1 (web): shares: 1 is not allowed: must be a whole"),
        (HEAD + GUEST + 'policy = "no"\n', 'policy: "no" is not allowed: must be one of "balance"'),
        (HEAD + GUEST + 'refuses_pins = "no"\n', 'must be one of "busy", "error"'),
        (HEAD + 'nodes = "0-3"\n' + GUEST, 'nodes: "0-3" is not allowed: must be a list of nodes'),
        (HEAD + 'nodes = ["0-4"]\n' + GUEST, 'nodes: ["0-4"] is not allowed: must be a list of no'),
        (HEAD + 'nodes = ["x"]\n' + GUEST, 'nodes: ["x"] is not allowed: must be a list of nodes'),
        (HEAD + 'caches = ["0", "0-1"]\n' + GUEST, "none in two of them, each within a node"),
        (
            HEAD + 'nodes = ["0-1"]\ncaches = ["1-2"]\n' + GUEST,
            'caches: ["1-2"] is not allowed: must be a list of caches such as',
        ),
        (
            HEAD + 'caches = ["0-1"]\ncores = ["0", "1-2"]\n' + GUEST,
            'cores: ["0", "1-2"] is not allowed: must be a list of cores such as',
        ),
        (HEAD + "capacities = [60]\n" + GUEST, "capacities: [60] is not allowed: must be a list"),
        (HEAD + 'capacities = [["0", 0]]\n' + GUEST, 'capacities: [["0", 0.0]] is not allowed'),
        (HEAD + 'capacities = [["0", 101]]\n' + GUEST, 'capacities: [["0", 101]] is not allowed'),
        (HEAD + 'capacities = [["5", 50]]\n' + GUEST, 'capacities: [["5", 50.0]] is not allowed'),
        (HEAD + 'capacities = [["0-3", 50]]\n' + GUEST, "no pCPU twice, and one of 100 at least"),
        (
            HEAD + 'capacities = [["0", 50], ["0", 60]]\n' + GUEST,
            'capacities: [["0", 50.0], ["0", 60.0]] is not allowed: must be a list such as',
        ),
        (
            HEAD + GUEST + 'memory_nodes = "0"\n',
            'guest 1 (web): memory_nodes: "0" is not allowed: must be a list of `nodes`',
        ),
        (HEAD + GUEST + GUEST, 'guest 2 (web): name: "web" is not allowed: must be another name'),
        (HEAD + GUEST + "count = 999999\n", "guest 1 (web): count: 999999 is not allowed"),
        (HEAD + GUEST + "vcpus = 9\ncount = 9999\n", "89991 vCPUs are not allowed: must be at"),
        ("cpus = 1\nperiods = 30000\n" + GUEST + "count = 999\n", "their product must be at most"),
        ("cpus = \n", "not a TOML file: Invalid value (at line 1, column 8)"),
        ("20110303,1,2,3\n", "is it a trace? then give it with --trace"),
        ("a = " + "[" * 100_000, "not a TOML file: nested too deeply"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    """It names the file, the guest, the key, the value, and what is allowed."""
    path = written(tmp_path, text)
    with pytest.raises(WorkloadError) as caught:
        read_toml(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert said in line
    assert "\n" not in line
    assert len(line) < 500


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file, a folder, bytes that are no text, and a damaged gzip are distinguished."""
    with pytest.raises(WorkloadError, match="cannot be read: No such file"):
        read_toml(tmp_path / "none")
    with pytest.raises(WorkloadError, match="cannot be read: Is a directory"):
        read_toml(tmp_path)
    path = tmp_path / "bytes"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(WorkloadError, match="neither text in UTF-8 nor gzip"):
        read_toml(path)
    path.write_bytes(gzip.compress(b"cpus = 1")[:-9])
    with pytest.raises(WorkloadError, match="is damaged"):
        read_toml(path)


def planetlab(*means: int) -> str:
    """Make rows as PlanetLab has them: a day, and 288 percents around a mean."""
    rows = [[mean + (step % 3) - 1 for step in range(288)] for mean in means]
    return "".join(f"20110303,{','.join(map(str, row))}\n" for row in rows)


def bitbrains(*rows: tuple[int, Sequence[int]]) -> str:
    """Make rows as Bitbrains has them: an id, vCPUs, and permilles."""
    return "".join(
        f"{100 + number},{vcpus},{','.join(map(str, values))}\n"
        for number, (vcpus, values) in enumerate(rows)
    )


@pytest.mark.parametrize("packed", [False, True])
def test_a_planetlab_trace(tmp_path: Path, packed: bool) -> None:  # noqa: FBT001  a parameter
    """Each row is a guest of one vCPU, in percent; plain or gzip, whatever its name."""
    path = tmp_path / "trace.toml"
    content = planetlab(10, 20, 30, 40).encode()
    path.write_bytes(gzip.compress(content) if packed else content)
    workload = read_trace(path, cpu_count=2, vcpu_count=4)
    assert (workload.cpu_count, workload.periods, workload.vcpu_count) == (2, 288, 4)
    loads = sorted(guest.loads_ppm[0][:3] for guest in workload.guests)
    assert loads[0] == (90_000, 100_000, 110_000)
    assert workload.mean_ppm() == 500_000


def test_a_bitbrains_trace(tmp_path: Path) -> None:
    """A guest's load is split over its vCPUs: unevenly, its sum kept, none above 100 %."""
    path = tmp_path / "trace"
    path.write_text(bitbrains((4, [500, 1000, 900, 0])))
    workload = read_trace(path, cpu_count=1, vcpu_count=4, seed=1)
    (guest,) = workload.guests
    assert [sum(loads) for loads in zip(*guest.loads_ppm, strict=True)] == [
        2 * PPM,
        4 * PPM,
        3_600_000,
        0,
    ]
    assert len({loads[0] for loads in guest.loads_ppm}) == 4
    assert max(load for loads in guest.loads_ppm for load in loads) == PPM


def test_choosing_from_a_trace(tmp_path: Path) -> None:
    """As many vCPUs as asked for, the last guest cut; the same seed the same, another others."""
    path = tmp_path / "trace"
    path.write_text(bitbrains(*[(4, range(number, 500)) for number in range(8)]))
    first = read_trace(path, cpu_count=4, vcpu_count=42, periods=100, seed=1)
    assert (first.vcpu_count, len(first.guests), first.periods) == (42, 11, 100)
    assert first == read_trace(path, cpu_count=4, vcpu_count=42, periods=100, seed=1)
    assert first != read_trace(path, cpu_count=4, vcpu_count=42, periods=100, seed=2)
    assert len({guest.name for guest in first.guests}) == 11


def test_a_trace_shorter_than_the_run_begins_again(tmp_path: Path) -> None:
    """Three values for seven periods."""
    path = tmp_path / "trace"
    path.write_text("7,1,100,200,300\n")
    (loads,) = read_trace(path, cpu_count=1, vcpu_count=1, periods=7).guests[0].loads_ppm
    assert sorted(loads[:3]) == [100_000, 200_000, 300_000]
    assert loads[:4] == loads[3:]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no row"),
        ("20110303" + ",5" * 80, "line 1: 80 values for 20110303: a day has 288"),
        ("7,1\n", 'line 1: "7,1" is no row of a trace'),
        ("2024-01-01,10,20\n", 'line 1: "2024-01-01,10,20" is no row of a trace'),
        (
            "7,1,5\n7,0,5\n",
            'line 2: value 2: "0" is not allowed: must be a whole number from 1 to 1024',
        ),
        ("7,1,1001\n", 'line 1: value 3: "1001" is not allowed: must be a whole number from 0'),
        ("7,1,5,x\n", 'line 1: value 4: "x" is not allowed'),
        ("7,1,5,-1\n", 'line 1: value 4: "-1" is not allowed'),
        ("7,1,5,²\n", 'line 1: value 4: "²" is not allowed'),
        (planetlab(100), 'value 4: "101" is not allowed: must be a whole number from 0 to 100'),
    ],
)
def test_a_mistake_in_a_trace(tmp_path: Path, text: str, said: str) -> None:
    """The line, the place in it, the value, and what is allowed."""
    path = written(tmp_path, text)
    with pytest.raises(WorkloadError) as caught:
        read_trace(path, cpu_count=1, vcpu_count=1)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)


def test_scaling_to_a_mean() -> None:
    """All by one factor; those that would exceed 100 % stop there, and the others make up."""
    workload = Workload("", 2, 1, (Guest("a", ((600_000,),)), Guest("b", ((200_000,),))))
    assert scaled(workload, 200_000).guests[0].loads_ppm == ((300_000,),)
    high = scaled(workload, 750_000)
    assert high.guests[0].loads_ppm == ((PPM,),)
    assert high.mean_ppm() == pytest.approx(750_000, rel=0.002)
    with pytest.raises(WorkloadError, match=r"120% is out of reach: .* it would be 100%"):
        scaled(workload, 1_200_000)


def test_splitting_a_load() -> None:
    """The sum is kept up to 100 % of each, whatever the weights."""
    chance = random.Random(1)
    for _ in range(500):
        weights = [chance.randrange(1, 1000) for _ in range(chance.randrange(1, 9))]
        load_ppm = chance.randrange(0, len(weights) * PPM * 11 // 10)
        parts = split(load_ppm, weights)
        assert sum(parts) == min(load_ppm, len(weights) * PPM)
        assert all(0 <= part <= PPM for part in parts)
    assert split(400_000, [3, 1]) == [300_000, 100_000]
    assert split(1_800_000, [9, 2, 1]) == [PPM, 533_334, 266_666]


def part_up_to(values: Sequence[float], limit: float) -> float:
    """Return the part of values not above a limit."""
    return sum(value <= limit + 1e-9 for value in values) / len(values)


def test_made_up_guests_are_as_published() -> None:
    """Sizes, lives, means and peaks within 3 points of the published distributions.

    Means and peaks over 12 hours at steps of 30 s, each guest's peak the 95th percentile of the
    highest load in each 5 minutes; sizes and lives as drawn.
    """
    means, peaks = [], []
    for number in range(2000):
        chance = random.Random(f"test/{number}")
        loads = traces.Profile.drawn(chance).loads(chance, 1440, 30.0, 0.0)
        means.append(sum(loads) / len(loads))
        highest = sorted(max(loads[step : step + 10]) for step in range(0, len(loads), 10))
        peaks.append(highest[len(highest) * 95 // 100])
    for limit, part in ((0.1, 0.555), (0.2, 0.73), (0.4, 0.89), (0.6, 0.96)):
        assert part_up_to(means, limit) == pytest.approx(part, abs=0.03)
    for limit, part in ((0.2, 0.34), (0.5, 0.51), (0.8, 0.75), (0.95, 0.85)):
        assert part_up_to(peaks, limit) == pytest.approx(part, abs=0.03)
    workload = traces.generate(cpu_count=1, vcpu_count=16_000, periods=1)
    sizes = [len(guest.loads_ppm) for guest in workload.guests]
    for size, part in ((2, 0.59), (4, 0.89), (8, 0.96)):
        assert part_up_to(sizes, size) == pytest.approx(part, abs=0.03)
    chance = random.Random(1)
    lives = [traces.life_s(chance) / 3600 for _ in range(5000)]
    for hours, part in ((1, 0.65), (8, 0.8), (24, 0.87), (100, 0.9)):
        assert part_up_to(lives, hours) == pytest.approx(part, abs=0.03)


def correlation(values: Sequence[float]) -> float:
    """Return the correlation of each value with the next."""
    mean = sum(values) / len(values)
    spread = sum((value - mean) ** 2 for value in values)
    return sum((a - mean) * (b - mean) for a, b in itertools.pairwise(values)) / spread


def test_made_up_guests_remember_as_published() -> None:
    """Six in ten say little about the next 5 minutes (correlation 0.1), the others much (0.75).

    Of each kind 40 for a day at steps of 30 s, without bursts and swing over the day; the loads
    of 5 minutes are less alike than the level under them, since steps swing around it.
    """
    drawn = [traces.Profile.drawn(random.Random(f"kind/{number}")) for number in range(2000)]
    forgetful = sum(profile.memory == 0.1 for profile in drawn)
    assert forgetful / len(drawn) == pytest.approx(0.6, abs=0.03)
    for memory in (0.1, 0.75):
        found = []
        for number in range(40):
            calm = dataclasses.replace(
                drawn[number], memory=memory, day_swing=0.0, burst_part=1e-9, peak=1.0
            )
            loads = calm.loads(random.Random(f"day/{number}"), 2880, 30.0, 0.0)
            found.append(
                correlation([sum(loads[step : step + 10]) / 10 for step in range(0, 2880, 10)])
            )
        assert sum(found) / len(found) == pytest.approx(memory, abs=0.1)


def test_made_up_guests_come_and_go() -> None:
    """Looked at once in 5 minutes for a week: the number of vCPUs running stays about the same.

    By Little's law; of 100 to 150 guests, with a mean life of 59 hours, about 300 more arrive.
    """
    workload = traces.generate(cpu_count=64, vcpu_count=400, periods=2016, seed=3, period_s=300.0)
    running = [
        sum(len(guest.loads_ppm) for guest in workload.guests if guest.start <= at < guest.end)
        for at in range(0, 2016, 24)
    ]
    assert running[0] == 400
    assert 250 < min(running) <= max(running) < 600
    assert sum(guest.start > 0 for guest in workload.guests) > 200


def test_made_up_loads_move_within_minutes() -> None:
    """Periods of 3 s are not copies of each other, but near ones are more alike than far ones."""
    near = far = 0.0
    for number in range(200):
        chance = random.Random(number)
        loads = traces.Profile.drawn(chance).loads(chance, 90, 3.0, 0.0)
        near += sum(abs(a - b) for a, b in itertools.pairwise(loads)) / 89
        far += sum(abs(a - b) for a, b in zip(loads, loads[30:], strict=False)) / 60
    assert 0 < near < 0.75 * far


def test_the_same_seed_makes_up_the_same_guests() -> None:
    """Another seed makes others."""
    one, same, other = (
        traces.generate(cpu_count=4, vcpu_count=16, periods=20, seed=seed) for seed in (1, 1, 2)
    )
    assert one == same
    assert one.guests != other.guests
    assert (one.vcpu_count, one.cpu_count, one.periods) == (16, 4, 20)
