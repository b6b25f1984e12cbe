"""A transformer that maps the atoms of a chemical reaction's products to those of its reactants."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
from scipy.sparse.csgraph import shortest_path

from benchmarks.real_models.real_model import SETS, Feeds, RealModel, Run, only
from benchmarks.real_models.task_error import DECISION_LIMIT, Array, Measure, item_error
from benchmarks.real_models.wheels import Wheel

RXNMAP = Wheel("chython_rxnmap", "2.0", "c330c6b2250bd024807abffc45f51d2953489fa52a9caa20e82572e4463d5de6")

_TOKENS = 36
_NEIGHBOUR_GAIN = 1.75
"""Factor of the attention between neighbours of atoms that are mapped already; the package's default."""
_MAX_DISTANCE = 10
_ELEMENTS = {"B": 5, "C": 6, "N": 7, "O": 8, "F": 9, "S": 16, "Cl": 17, "Br": 35, "I": 53}
_VALENCES = {5: 3, 6: 4, 7: 3, 8: 2, 9: 1, 16: 2, 17: 1, 35: 1, 53: 1}
_TOKEN = re.compile(r"Cl|Br|[BCNOFSI]|[cnos]|[=#()]|\d")
_REACTIONS = (
    "CC(=O)O.OCC>>CC(=O)OCC",
    "c1ccccc1C(=O)Cl.NCC>>c1ccccc1C(=O)NCC",
    "CCBr.Oc1ccccc1>>CCOc1ccccc1",
    "CC(=O)Cl.Nc1ccc(F)cc1>>CC(=O)Nc1ccc(F)cc1",
    "OB(O)c1ccccc1.Brc1ccncc1>>c1ccc(cc1)c1ccncc1",
    "CC=O.NCc1ccccc1>>CCNCc1ccccc1",
    "CI.Sc1ccccc1>>CSc1ccccc1",
    "CC(C)=O.CC=O>>CC(=O)CC(C)O",
    "CCOC(=O)c1ccco1.NC>>CNC(=O)c1ccco1",
    "CN(C)C.BrCC(=O)OCC>>CN(C)CC(=O)OCC",
    "c1ccccc1C=O.CC(=O)C>>c1ccccc1C=CC(=O)C",
    "OCC#C.BrCc1ccccc1>>C#CCOCc1ccccc1",
    "CCC(=O)O.OC(C)C>>CCC(=O)OC(C)C",
    "c1ccsc1C(=O)Cl.NCCC>>c1ccsc1C(=O)NCCC",
    "CCCBr.Oc1ccc(Cl)cc1>>CCCOc1ccc(Cl)cc1",
    "CCC(=O)Cl.Nc1cccc(C)c1>>CCC(=O)Nc1cccc(C)c1",
    "OB(O)c1ccc(C)cc1.Brc1cccnc1>>Cc1ccc(cc1)c1cccnc1",
    "CCC=O.NCc1ccco1>>CCCNCc1ccco1",
    "CCI.Sc1ccc(F)cc1>>CCSc1ccc(F)cc1",
    "CCC(=O)CC.CC=O>>CCC(=O)C(C)C(C)O",
    "COC(=O)c1cccs1.NCC>>CCNC(=O)c1cccs1",
    "CNC.ClCC(=O)OC>>CN(C)CC(=O)OC",
    "c1cc(F)ccc1C=O.CC(=O)C>>c1cc(F)ccc1C=CC(=O)C",
    "OCCC#C.ClCc1ccncc1>>C#CCCOCc1ccncc1",
)
"""Reactions in SMILES: twelve for `stillhouse accelerate`, then twelve that are held out."""


@dataclass(frozen=True, slots=True)
class Molecule:
    """A molecule without its hydrogens.

    Args:
        numbers: atomic number of each atom, (atoms,).
        neighbours: number of neighbours of each atom, hydrogens included, (atoms,).
        bonds: whether two atoms are bonded, (atoms, atoms).
    """

    numbers: Array
    neighbours: Array
    bonds: Array


def parse_smiles(text: str) -> Molecule:
    """Return the molecule of a SMILES text (Weininger 1988) without brackets, charges and stereochemistry.

    >>> parse_smiles("CC(=O)O").neighbours.tolist()
    [4, 3, 1, 2]
    """
    numbers: list[int] = []
    aromatic: list[bool] = []
    orders: dict[tuple[int, int], int] = {}
    branches, rings, last, order = list[int](), dict[str, int](), -1, 1
    for token in _TOKEN.findall(text):
        if token in "=#":
            order = "-=#".index(token) + 1
        elif token == "(":
            branches.append(last)
        elif token == ")":
            last = branches.pop()
        elif token.isdigit():
            other = rings.pop(token, None)
            if other is None:
                rings[token] = last
            else:
                orders[other, last], order = order, 1
        else:
            numbers.append(_ELEMENTS[token.capitalize()])
            aromatic.append(token.islower())
            if last >= 0:
                orders[last, len(numbers) - 1], order = order, 1
            last = len(numbers) - 1
    return _molecule(numbers, aromatic, orders)


def _molecule(numbers: list[int], aromatic: list[bool], orders: dict[tuple[int, int], int]) -> Molecule:
    """Fill up the valences with hydrogens; an aromatic carbon has three neighbours, no other aromatic atom any."""
    bonds = np.zeros((len(numbers),) * 2, bool)
    used = np.zeros(len(numbers), int)
    for (one, other), order in orders.items():
        bonds[one, other] = bonds[other, one] = True
        used[[one, other]] += order
    degrees = bonds.sum(1)
    hydrogens = np.array([_VALENCES[number] for number in numbers]) - used
    in_ring = np.where(np.array(numbers) == _ELEMENTS["C"], 3, degrees)
    return Molecule(np.array(numbers), np.where(aromatic, in_ring, degrees + hydrogens), bonds)


Sides: TypeAlias = tuple[tuple[Molecule, ...], tuple[Molecule, ...]]
"""Molecules before and after a reaction."""


@cache
def _reaction(index: int, tokens: int = _TOKENS) -> Sides:
    """Return a reaction in as much of an alkane as a solvent as makes it `tokens` long; 0: without a solvent."""
    reactants, products = (tuple(map(parse_smiles, side.split("."))) for side in _REACTIONS[index].split(">>"))
    length = 1 + sum(len(molecule.numbers) + 1 for molecule in reactants + products)
    solvent = (parse_smiles("C" * (tokens - length - 1)),) if tokens else ()
    return (*reactants, *solvent), products


def _reaction_feeds(sides: Sides) -> Feeds:
    """Return a reaction as chython encodes it: a token for the reaction, for each molecule, and for each atom."""
    atoms, neighbours, roles = [0], [0], [1]
    blocks = [np.ones((1, 1), int)]
    for role, molecules in zip((2, 3), sides, strict=True):
        for molecule in molecules:
            atoms += [1, *(molecule.numbers + 2)]
            neighbours += [0, *(molecule.neighbours + 2)]
            roles += [0, *[role] * len(molecule.numbers)]
            steps = shortest_path(molecule.bonds, unweighted=True, directed=False)
            block = np.ones((len(steps) + 1,) * 2, int)
            block[1:, 1:] = np.minimum(steps, _MAX_DISTANCE) + 2
            blocks.append(block)
    distances = np.zeros((len(atoms),) * 2, int)
    start = 0
    for block in blocks:
        distances[start : start + len(block), start : start + len(block)] = block
        start += len(block)
    rows = {"atoms": atoms, "neighbors": neighbours, "distances": distances, "roles": roles}
    return {name: np.array(values, np.int64)[None] for name, values in rows.items()}


def _token_places(molecules: Sequence[Molecule], first: int) -> Array:
    """Return the places of the atoms in the sequence of tokens, where the first molecule's own token is at `first`."""
    counts = [len(molecule.numbers) for molecule in molecules]
    starts = first + 1 + np.cumsum([0, *(count + 1 for count in counts[:-1])])
    return np.concatenate([start + np.arange(count) for start, count in zip(starts, counts, strict=True)])


def _all_bonds(molecules: Sequence[Molecule]) -> Array:
    size = sum(len(molecule.numbers) for molecule in molecules)
    bonds, start = np.zeros((size, size), bool), 0
    for molecule in molecules:
        end = start + len(molecule.numbers)
        bonds[start:end, start:end] = molecule.bonds
        start = end
    return bonds


def map_atoms(attention: Array, product_bonds: Array, reactant_bonds: Array) -> list[int]:
    """Return the reactant's atom for each atom of the product; -1: none is left.

    The strongest attention decides first; then atoms beside mapped ones, whose attention is raised, as in chython.

    Args:
        attention: of product atoms to reactant atoms, 0 where the elements differ, (product atoms, reactant atoms).
        product_bonds, reactant_bonds: whether two atoms are bonded.
    """
    weights, mapped = attention.astype(np.float64), [-1] * len(attention)
    beside = np.zeros(len(attention), bool)
    for _ in range(len(attention)):
        rows = weights * beside[:, None] if beside.any() else weights
        row, column = np.unravel_index(rows.argmax(), rows.shape)
        if np.isclose(rows[row, column], 0.0):
            break
        mapped[row] = int(column)
        weights[np.ix_(product_bonds[row], reactant_bonds[column])] *= _NEIGHBOUR_GAIN
        weights[row], weights[:, column] = 0.0, 0.0
        beside |= product_bonds[row]
        beside &= np.array(mapped) < 0
    return mapped


def symmetry_classes(numbers: Array, bonds: Array) -> list[int]:
    """Return a number for each atom, equal for atoms that the bonds do not tell apart (Morgan 1965)."""
    classes = [int(number) for number in numbers]
    for _ in classes:
        keys = [(one, *sorted(np.array(classes)[row].tolist())) for one, row in zip(classes, bonds, strict=True)]
        ranks = {key: rank for rank, key in enumerate(sorted(set(keys)))}
        classes = [ranks[key] for key in keys]
    return classes


def _mapped_classes(run: Run) -> list[tuple[int, int]]:
    """Return, for each atom of all held-out products, the reaction and the symmetry class of the reactant's atom."""
    found = []
    for index in range(SETS, len(_REACTIONS)):
        sides = _reaction(index)
        classes = symmetry_classes(_all_numbers(sides[0]), _all_bonds(sides[0]))
        mapped = map_atoms(_attention(sides, only(run(_reaction_feeds(sides)))), *map(_all_bonds, sides[::-1]))
        found += [(index, classes[atom] if atom >= 0 else -1) for atom in mapped]
    return found


def _attention(sides: Sides, output: Array) -> Array:
    """Return the attention between atoms of products and of reactants in both directions, where elements are equal."""
    reactants, products = sides
    own = _token_places(reactants, 1)
    other = _token_places(products, 1 + sum(len(molecule.numbers) + 1 for molecule in reactants))
    both = output[np.ix_(other, own)] + output[np.ix_(own, other)].T
    return np.asarray(both * (_all_numbers(products)[:, None] == _all_numbers(reactants)))


def _all_numbers(molecules: Sequence[Molecule]) -> Array:
    return np.concatenate([molecule.numbers for molecule in molecules])


def _mapping_findings(classes: list[tuple[int, int]]) -> str:
    mapped = sum(one >= 0 for _, one in classes)
    return f"maps {mapped} of {len(classes)} atoms of {SETS} reactions" if mapped > 0.9 * len(classes) else ""


def _mapping_error(reference: list[tuple[int, int]], found: list[tuple[int, int]]) -> list[Measure]:
    return item_error(reference, found, DECISION_LIMIT)


REACTIONS = (
    RealModel(
        "rxnmap",
        RXNMAP,
        "chython_rxnmap/rxnmap.onnx",
        "transformer over the atoms of a reaction",
        inputs=lambda: [_reaction_feeds(_reaction(index)) for index in range(SETS)],
        perform=_mapped_classes,
        compare=_mapping_error,
        findings=_mapping_findings,
        other_inputs=lambda: {
            f"{feeds['atoms'].size} tokens": feeds
            for feeds in (_reaction_feeds(_reaction(index, tokens=0)) for index in (0, 4))
        },
    ),
)
"""Networks for chemical reactions."""
