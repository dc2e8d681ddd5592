"""Measures of parts of people, by hand."""

import numpy as np
import pytest
import torch

from utils.evaluation.parts import correct_keypoints, joint_positions, mean_class_iou


def test_classes_are_counted_over_all_frames_together():
    first = np.array([[0, 0, 1, 1]]), np.array([[0, 1, 1, 1]])
    second = np.array([[0, 0, 0, 2]]), np.array([[0, 0, 0, 1]])
    # Class 0: 4 common of 5. Class 1: 2 of 4. Class 2 is predicted alone: 0 of 1.
    assert mean_class_iou([first, second]) == pytest.approx((4 / 5 + 2 / 4 + 0) / 3)
    # Single frames would give (1/2 + 2/3) / 2 and (1 + 0 + 0) / 3.
    assert mean_class_iou([first]) == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_true_labels_that_are_no_class_do_not_count():
    pair = np.array([[0, 3, 1]], np.uint8), np.array([[0, 255, 1]], np.uint8)
    assert mean_class_iou([pair]) == 1


def test_a_joint_is_the_mean_of_its_three_strongest_cells():
    maps = torch.zeros(2, 3, 4)
    maps[0, 1, 2], maps[0, 1, 3], maps[0, 2, 2], maps[0, 0, 0] = 0.5, 0.3, 0.2, 0.1
    # x = (2 * 0.5 + 3 * 0.3 + 2 * 0.2) / 1, y = (1 * 0.5 + 1 * 0.3 + 2 * 0.2) / 1
    torch.testing.assert_close(joint_positions(maps)[0], torch.tensor([2.3, 1.2]))
    assert joint_positions(maps)[1].tolist() == [-1, -1]


def video(*distances):
    """Two joints 30 x 40 pixels apart, whose limit is 0.1 * 0.6 * 50 = 3; frames by distances."""
    truth = np.array([[[10.0, 10.0], [40.0, 50.0]]] * len(distances))
    predicted = truth.copy()
    predicted[:, :, 0] += distances
    return predicted, truth


def test_keypoints_by_hand():
    # First frames do not count. Joint 0 is right in 2 of 3 frames, joint 1 in 1 of 3.
    clip = video((99, 99), (3, 3), (0, 4), (4, 9))
    clip[0][2, 0] = clip[1][2, 0]
    assert correct_keypoints([clip]) == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert correct_keypoints([clip], alpha=0.2) == pytest.approx((3 / 3 + 2 / 3) / 2)
    # Videos are pooled by joint before the mean: 3 of 4 and 1 of 4.
    assert correct_keypoints([clip, video((0, 0), (1, 8))]) == pytest.approx((3 / 4 + 1 / 4) / 2)


def test_a_lost_joint_counts_neither_as_one_nor_in_the_box():
    predicted, truth = (np.array([[[0.0, 0], [30, 40], [300, 0]]] * 2) for _ in range(2))
    predicted[1, 0, 0] += 4
    assert correct_keypoints([(predicted, truth)]) == 1  # the box is 302 pixels long
    predicted[1, 2] = -1
    # The box is 50 long, so 4 pixels are too many; joint 1 is right, joint 2 does not count.
    assert correct_keypoints([(predicted, truth)]) == pytest.approx((0 + 1) / 2)
