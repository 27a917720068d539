from rest_em.sampling.units import plan_units


def flat(units):
    return [(problem, index) for unit in units for problem, indices in unit for index in indices]


def test_every_sample_is_in_one_unit_in_order():
    for num_problems, num_samples, unit_size in [(7, 3, 10), (5, 8, 8), (3, 20, 6), (1, 1, 1), (4, 5, 4)]:
        wanted = [(problem, index) for problem in range(num_problems) for index in range(num_samples)]
        assert flat(plan_units(num_problems, num_samples, unit_size)) == wanted


def test_no_unit_is_larger_than_asked():
    for num_problems, num_samples, unit_size in [(7, 3, 10), (5, 8, 8), (3, 20, 6), (4, 5, 4)]:
        sizes = [len(flat([unit])) for unit in plan_units(num_problems, num_samples, unit_size)]
        assert max(sizes) <= unit_size


def test_a_problem_is_split_only_if_it_does_not_fit():
    assert plan_units(3, 4, 8) == [((0, range(4)), (1, range(4))), ((2, range(4)),)]
    assert plan_units(1, 9, 8) == [((0, range(5)),), ((0, range(5, 9)),)]


def test_no_problems_make_no_units():
    assert plan_units(0, 4, 8) == []
