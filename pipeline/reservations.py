"""What the workers of a training hold together of a cluster, and freeing it when it is lost."""

from __future__ import annotations


def free_orphans() -> int:
    """Free what the lost of this command's trainings hold; how many of them did.

    The workers of a training share a reservation, which its controller made. Ray frees it when the
    whole command ends, and Ray Train when the controller dies, but only where Ray's dashboard runs.
    """
    import ray
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData as Reservation
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    job = ray.get_runtime_context().get_job_id()
    kept = ray._private.state.state._connect_and_get_accessor().get_placement_group_table()
    orphans = [
        found
        for found in map(Reservation.FromString, kept)
        if found.creator_job_id.hex() == job and found.state != Reservation.REMOVED
        # Of those that no actor has made, the actor counts as dead.
        if found.creator_actor_dead and found.creator_actor_id.strip(b"\xff")
    ]
    for found in orphans:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(found.placement_group_id)))
    return len(orphans)
