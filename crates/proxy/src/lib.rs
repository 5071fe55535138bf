//! Services to packets: planner and appliers.
