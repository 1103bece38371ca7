"""Tests of hardware settings: the CPUs and GPUs that they need, and how they adapt to fewer CPUs."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.config.hardware import EngineHardware, GroupHardware, Hardware, Replicas, TrainerHardware

engines = st.builds(EngineHardware, replicas=st.integers(1, 4), cpus_per_replica=st.sampled_from([0.25, 0.5, 1, 2, 4]))
hardware = st.builds(
    Hardware,
    policy=engines,
    judge=engines,
    trainer=st.builds(TrainerHardware, workers=st.integers(1, 4), cpus_per_worker=st.sampled_from([0.5, 1, 2])),
    together=st.booleans(),
)


def cpus_in_actors(settings):
    """The largest number of logical CPUs that actors use at the same time."""
    engines = [engine.replicas.min * engine.cpus_per_replica for engine in (settings.policy, settings.judge)]
    training = settings.trainer.workers * settings.trainer.cpus_per_worker
    return max(sum(engines) if settings.together else max(engines), training)


@given(hardware)
def test_two_cpus_are_left_for_tasks_and_the_train_controller(settings):
    assert cpus_in_actors(settings) <= settings.cpus() - 2


@given(hardware, st.integers(2, 8))
def test_on_a_smaller_cluster_one_cpu_is_left_for_tasks(settings, cpus):
    assume(cpus < settings.cpus())
    # The tolerance is for sums such as 3 * 0.2 + 3 * 0.8, slightly above 3. Ray counts in steps of 0.0001.
    assert cpus_in_actors(settings.scaled_to(cpus)) <= cpus - 1 + 1e-9


@given(hardware)
def test_scaled_to_changes_nothing_if_there_are_enough_cpus(settings):
    assert settings.scaled_to(settings.cpus()) == settings


def test_a_replica_uses_part_of_a_gpu_or_whole_gpus():
    assert EngineHardware(gpus_per_replica=0.5).gpus_per_replica == 0.5
    with pytest.raises(ValidationError, match="above 1 it must be a whole number"):
        EngineHardware(gpus_per_replica=2.5)


def test_an_engine_on_part_of_a_gpu_cannot_take_a_larger_part_of_its_memory():
    half = {"gpus_per_replica": 0.5, "replicas": 2}
    for name in ("policy", "judge"):
        with pytest.raises(ValidationError, match=f"hardware.{name} has .* Set gpu_memory_utilization to 0.5 or less"):
            Hardware(**{name: half})
        assert Hardware(**{name: half | {"gpu_memory_utilization": 0.45}}).gpus() == 1


def test_engines_in_turn_share_gpus_and_engines_together_do_not():
    two_gpus = EngineHardware(gpus_per_replica=1, replicas=2)
    assert Hardware(policy=two_gpus, judge=two_gpus).gpus() == 2
    assert Hardware(policy=two_gpus, judge=two_gpus, together=True).gpus() == 4


def test_a_sharded_frozen_policy_takes_all_workers_beside_the_engines():
    one_gpu = EngineHardware(gpus_per_replica=1)
    trainer = {"workers": 4, "gpus_per_worker": 1, "cpus_per_worker": 2}
    for shard, workers in ((None, 1), (False, 1), (True, 4)):
        settings = {"policy": one_gpu, "judge": one_gpu, "trainer": trainer | {"shard_references": shard}}
        assert Hardware(**settings, together=True).gpus() == max(1 + 1 + workers, 4)
        assert Hardware(**settings, together=True).cpus() == max(1 + 1 + 2 * workers, 8) + 2
        assert Hardware(**settings).gpus() == 4


def test_a_growing_pool_needs_only_its_minimum_replicas():
    growing = EngineHardware(gpus_per_replica=1, cpus_per_replica=2, replicas={"min": 1, "max": 8})
    assert Hardware(policy=growing).gpus() == 1
    assert Hardware(policy=growing).cpus() == Hardware(policy=EngineHardware(cpus_per_replica=2)).cpus()
    assert EngineHardware(replicas=3).replicas == Replicas(min=3, max=3)


@pytest.mark.parametrize(
    ("replicas", "message"),
    [
        ("auto", "replicas is 'auto': it should be a number such as 2, or {min: 1, max: 8}"),
        ({"min": 3, "max": 2}, "min=3 and max=2: max should not be less than min"),
        (0, "greater than 0"),
        (True, "it should not be true or false"),
        ({"max": 2}, "min"),
    ],
)
def test_invalid_replicas_are_refused(replicas, message):
    with pytest.raises(ValidationError, match=message):
        EngineHardware(replicas=replicas)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cpu_offload": True}, "cpu_offload, which saves GPU memory, and gpus_per_worker is 0: remove cpu_offload"),
        ({"shard_references": True}, "there is nothing to shard a policy over. Raise workers, set cpu_offload, or"),
        ({"torch_compile": True, "gradient_checkpointing": True}, "Choose one of them"),
    ],
)
def test_impossible_trainer_settings_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        TrainerHardware(**settings)


def test_an_engine_on_several_nodes_reserves_a_bundle_for_each_gpu():
    engine = EngineHardware(gpus_per_replica=4, nodes_per_replica=2, cpus_per_replica=3)
    assert engine.bundles == [{"CPU": 3, "GPU": 1}, {"GPU": 1}, {"GPU": 1}, {"GPU": 1}]
    assert engine.tensor_parallel_size == 4
    assert EngineHardware(gpus_per_replica=4).bundles == []
    for gpus in (1, 3):
        with pytest.raises(ValidationError, match=f"nodes_per_replica is 2 and gpus_per_replica is {gpus}"):
            EngineHardware(gpus_per_replica=gpus, nodes_per_replica=2)


def test_an_engine_that_no_node_has_room_for_is_refused():
    """Ray would wait for a larger node without a message."""
    wide = Hardware(judge=EngineHardware(gpus_per_replica=16))
    with pytest.raises(ValueError, match="hardware.judge asks for 16 GPUs of a node, and no node has more than 8"):
        wide.check_nodes([8, 8, 0])
    wide.check_nodes([8, 0])  # the cluster has too few GPUs, and may still grow
    wide.check_nodes([16])
    Hardware(judge=EngineHardware(gpus_per_replica=16, nodes_per_replica=2)).check_nodes([8, 8])
    Hardware().check_nodes([])


def test_each_worker_of_a_group_has_an_equal_part_and_their_leader_none():
    group = GroupHardware(workers=4, gpus_per_replica=4, cpus_per_replica=2)
    assert group.bundles == [{"CPU": 0.5, "GPU": 1}] * 4
    assert group.actor_cpus == 0
    assert GroupHardware(workers=2, cpus_per_replica=2).bundles == [{"CPU": 1}] * 2
